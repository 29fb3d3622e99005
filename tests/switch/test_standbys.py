"""The plan's standbys have fence and marker before the journal, or the switch is undone."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from cutover.devstack.binaries import postgres_bin
from cutover.plan.models import MonolithRef, Plan
from cutover.postgres.databases import Database
from cutover.switch import reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import order
from tests.waiting import until

STANDBY = "standby_one"


@asynccontextmanager
async def standby(database: Database, folder: Path) -> AsyncIterator[None]:
    """A real receiver of the WAL that flushes it at once, as a standby does."""
    process = await asyncio.create_subprocess_exec(
        str(postgres_bin() / "pg_receivewal"), "--synchronous", "--no-loop", "-D", str(folder),
        "-d", f"{database.dsn}?application_name={STANDBY}",
    )  # fmt: skip
    try:

        async def connected() -> bool:
            async with database.session() as connection:
                seen = "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1 AND flush_lsn IS NOT NULL"
                return bool(await connection.fetchval(seen, STANDBY))

        await until(connected, "the standby is connected")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


def with_standby(env: SwitchEnvironment, milliseconds: int) -> SwitchEnvironment:
    """The same migration whose monolith has a standby, and a pause of that length."""
    values = env.plan.model_dump(mode="json")
    values["monolith"] = MonolithRef(database="monolith", standbys=[STANDBY]).model_dump(mode="json")
    values["switchover"]["max_write_pause"] = f"{milliseconds}ms"
    return replace(env, plan=Plan.model_validate(values))


async def test_a_standby_that_is_not_there_undoes_the_switch_and_is_named(env: SwitchEnvironment) -> None:
    env = with_standby(env, 1500)
    await reverse.make_ready(env, "service")
    outcome = await section.run(env, order(env, "service"), lambda _: None)
    assert outcome.result == "undone"
    assert STANDBY in (outcome.reason or "")


async def test_a_standby_that_follows_lets_the_switch_pass(env: SwitchEnvironment, tmp_path: Path) -> None:
    env = with_standby(env, 5000)
    async with standby(env.pair.monolith, tmp_path):
        await reverse.make_ready(env, "service")
        outcome = await section.run(env, order(env, "service"), lambda _: None)
        assert outcome.result == "done", outcome.reason
