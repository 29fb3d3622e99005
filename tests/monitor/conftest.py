"""A service that is ready to be switched, and one look at it; the same by a stream of intents."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest_asyncio

from cutover.control import stages
from cutover.control.database import Control
from cutover.monitor import permanent
from cutover.monitor.findings import Finding
from cutover.postgres import fence
from cutover.postgres.databases import SIDES, Database, Side
from cutover.switch import finish, reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import OUTBOX_PLAN, TABLES, drop_streams, installed, order
from tests.switch.conftest import env as env  # the fixtures of a service between two real clusters
from tests.switch.conftest import work as work
from tests.waiting import until


@dataclass(frozen=True)
class Watched:
    """The environment's service as the monitor sees it."""

    env: SwitchEnvironment

    async def look(self, *, mend: bool = False) -> permanent.Looked:
        return await permanent.look(self.env.control, self.env.plan, self.env.pair, mend=mend)

    async def found(self, watch: str, *, mend: bool = False) -> list[Finding]:
        """What one look finds of that kind."""
        return [one for one in (await self.look(mend=mend)).findings if one.watch == watch]

    async def quiet(self) -> None:
        """One look at a service that is settled finds nothing."""
        looked = await self.look()
        assert looked.settled
        assert looked.findings == []

    async def mended(self, watch: str) -> None:
        """It is found no more, within some looks: a walsender or a worker needs a moment."""

        async def gone() -> bool:
            return await self.found(watch) == []

        await until(gone, f"{watch} is mended")

    async def on(self, side: Side, *statements: str) -> None:
        """As a superuser at the side's database."""
        async with self.env.pair.at(side).session("psql") as connection:
            for statement in statements:
                await connection.execute(statement)

    async def switch(self, to_side: Side) -> None:
        await reverse.make_ready(self.env, to_side)
        request = order(self.env, to_side)
        assert (await section.run(self.env, request, lambda _: None)).result == "done"
        await finish.finish(self.env, request)


@pytest_asyncio.fixture
async def watched(env: SwitchEnvironment) -> Watched:
    """`stream: logical`, quiet at first."""
    await stages.set_stage(env.control, "test", env.pair.service, "ready")
    watching = Watched(env)
    await watching.quiet()
    return watching


@pytest_asyncio.fixture
async def outbox(monolith_db: Database, service_db: Database, control: Control) -> AsyncIterator[Watched]:
    """`stream: outbox`, started without a copy; no relay runs."""
    env = await installed(monolith_db, service_db, control, OUTBOX_PLAN)
    for side in SIDES:
        async with env.pair.at(side).session() as connection:
            await fence.make_always(connection, TABLES)
    await stages.set_stage(control, "test", env.pair.service, "ready")
    await env.stream("forward").start(copy=False)
    try:
        yield Watched(env)
    finally:
        await drop_streams(env)
