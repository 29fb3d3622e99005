"""The ground of one run: databases of its own in two shared clusters, with one service that streams and is fenced.

A `Place` names it and can be handed to other processes; the servers are shared by all runs of a campaign.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from chaos import tables
from cutover import pairs
from cutover.control import checks, plans, stages
from cutover.control.database import Control
from cutover.flags import store as flags
from cutover.monitor import catalogs
from cutover.plan.dsn import variable
from cutover.plan.models import Plan
from cutover.postgres import epoch, fence, outbox_quarantine
from cutover.postgres.databases import SIDES, Database, Direction, Pair, Side
from cutover.reconcile.passes import Job, run_pass
from cutover.settings import Settings
from cutover.streams.base import settling
from cutover.streams.outbox import Backfill, OutboxStream
from cutover.switch.environment import SwitchEnvironment

#: What a plan says of a service's stream, by the level's name.
STREAMS = {
    "logical": {"stream": "logical"},
    "strong": {"stream": "outbox", "consistency": "strong"},
    "eventual": {"stream": "outbox", "consistency": "eventual"},
    "best_effort": {"stream": "outbox", "consistency": "best_effort"},
}
#: The pause's limit; delays are longer.
MAX_PAUSE = 2.0
#: Rows that are there before any client.
GROUND_ROWS = 200
_READY_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """One run's databases and names."""

    migration: str
    level: str
    control: Database
    monolith: Database
    target: Database
    #: Where cleanup puts its archive.
    archive: str
    #: Seconds, and steps of each sequence.
    max_pause: float = MAX_PAUSE
    #: As few that a sequence which stayed behind gives an id twice within a turn.
    sequence_margin: int = 5

    @property
    def service(self) -> str:
        """The service is called as its level, and its tables begin so."""
        return self.level

    @property
    def plan(self) -> Plan:
        rules = {
            "database": tables.SERVICES[self.service],
            "tables": {tables.items(self.service): {}, tables.events(self.service): {}},
            **STREAMS[self.level],
        }
        return Plan.model_validate(
            {
                "migration": self.migration,
                "monolith": {"database": "monolith"},
                "services": {self.service: rules},
                "switchover": {
                    "max_write_pause": f"{self.max_pause:g}s",
                    "sequence_margin": self.sequence_margin,
                },
                "cleanup": {"archive_dir": self.archive},
            }
        )

    @property
    def pair(self) -> Pair:
        return pairs.between(self.plan, self.service, self.monolith, self.target)

    @property
    def settings(self) -> Settings:
        """As a worker has them in its environment."""
        databases = {"monolith": self.monolith, tables.SERVICES[self.service]: self.target, "control": self.control}
        return Settings({variable(name): database.dsn for name, database in databases.items()})

    def database(self, service: str, side: Side) -> Database:
        """Where that service's tables are."""
        return self.pair.at(side)

    def environment(self, control: Control) -> SwitchEnvironment:
        return SwitchEnvironment(self.plan, self.pair, control)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[SwitchEnvironment]:
        """The environment as a worker has it: sessions are used again, and it has a pool to the control database."""
        monolith, target = [Database(one.name, one.dsn, reuse=True) for one in (self.monolith, self.target)]
        control = await Control.open(self.control)
        try:
            yield replace(self, monolith=monolith, target=target).environment(control)
        finally:
            monolith.end_idle()
            target.end_idle()
            await control.close()


async def install(place: Place) -> None:
    """Tables with some rows, fences, flags and the plan; no stream yet."""
    async with place.opened() as env:
        pair, control = env.pair, env.control
        for side in SIDES:
            async with pair.at(side).session("chaos-install") as connection:
                await connection.execute(tables.ddl(place.service))
                await epoch.install(connection, place.service, side)
                await fence.install(connection, place.service, pair.tables, closed=side == "service")
        async with pair.monolith.session("chaos-install") as connection:
            await connection.execute(tables.fill(place.service), GROUND_ROWS)
        await plans.register(control, env.plan, "chaos")
        await checks.ensure(control, env.plan)
        await flags.ensure(control, place.migration, place.service)
        await catalogs.take(control, pair, env.plan.hash, by="chaos")


async def start(env: SwitchEnvironment) -> None:
    """The forward stream with its first copy begun; for an outbox `copy` has to follow."""
    stream = env.stream("forward")
    await stream.prepare()
    await env.changed("forward").prepare()
    await stream.start(copy=True)


async def copy(env: SwitchEnvironment) -> None:
    """The first copy, whoever makes it, is done when this returns; a first pass has verified it."""
    stream = env.stream("forward")
    if isinstance(stream, OutboxStream):
        await Backfill(env.pair, "forward").run()
    async with asyncio.timeout(_READY_SECONDS):
        while not await stream.ready():
            await asyncio.sleep(0.05)
    async with env.pair.target.session("chaos-install") as sink:
        await fence.make_always(sink, env.pair.tables)
    await verify(env, "forward")
    await stages.set_stage(env.control, env.pair.migration, env.pair.service, "ready")


async def verify(env: SwitchEnvironment, direction: Direction) -> int:
    """A full pass over every table, taken over by the record of changed keys; how many rows differ."""
    settle = settling(env.stream(direction), _READY_SECONDS)
    differences = 0
    async with env.changed(direction) as changed:
        for table in env.pair.tables:
            rules = env.service.tables[str(table)]
            report = await run_pass(Job(env.pair, direction, table, rules, env.control, env.plan.hash, settle))
            differences += report.differences
            await changed.verified(report)
    return differences


async def drop(place: Place) -> None:
    """Streams, slots and origins of a run, so that its databases can be dropped. Problems are raised at the end."""
    async with place.opened() as env:
        for direction in ("forward", "reverse"):
            await env.changed(direction).drop()
            await env.stream(direction).drop()


async def execute(database: Database, *statements: str) -> None:
    """Statements of a person with an administrator's role, in one session."""
    async with database.session("chaos-admin") as connection:
        for statement in statements:
            await connection.execute(statement)


async def behind_the_fence(database: Database, statement: str) -> None:
    """A write at the side that is not the primary, as nobody should make one."""
    await execute(database, "SET cutover.applier = 'on'", "SET session_replication_role = replica", statement)


async def retry_held(database: Database, service: str) -> int:
    """What is held in quarantine there is tried again; how many keys were held."""
    async with database.session("chaos-admin") as connection:
        ids = [one.id for one in await outbox_quarantine.held(connection, service)]
        if ids:
            await outbox_quarantine.retry(connection, service, ids, by="chaos", why="its cause is gone")
    return len(ids)
