"""The harness's clients on real servers: a switch and a way back under them, one of them killed in between."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from chaos.checker import check
from chaos.sides import Switch, done_switches
from chaos.tables import MIGRATION, SERVICES, Rows, ddl, events, fill, items, read_rows
from cutover import pairs
from cutover.control import plans
from cutover.control.database import Control
from cutover.flags import store as flags
from cutover.plan.dsn import variable
from cutover.plan.load import load_text
from cutover.postgres import epoch, fence
from cutover.postgres.databases import SIDES, Database, Side, direction_from
from cutover.streams.outbox import Backfill
from cutover.switch import finish, reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import drop_streams, order, verify
from tests.switch.test_outbox import relays
from tests.waiting import until

SERVICE = "eventual"
PLAN = f"""
migration: {MIGRATION}
monolith: {{database: monolith}}
services:
  {SERVICE}:
    database: {SERVICES[SERVICE]}
    stream: outbox
    tables: {{{items(SERVICE)}: {{}}, {events(SERVICE)}: {{}}}}
switchover: {{max_write_pause: 5s}}
"""


@pytest.fixture
async def env(monolith_db: Database, service_db: Database, control: Control) -> AsyncIterator[SwitchEnvironment]:
    """A prepared service with rows of the ground, its forward stream started and its first copy still to be made."""
    plan = load_text(PLAN)
    pair = pairs.pair(plan, SERVICE, lambda name: monolith_db if name == "monolith" else service_db)
    for side in ("monolith", "service"):
        async with pair.at(side).session() as connection:
            await connection.execute(ddl(SERVICE))
            await epoch.install(connection, SERVICE, side)
            await fence.install(connection, SERVICE, pair.tables, closed=side == "service")
    async with pair.target.session() as sink:
        await fence.make_always(sink, pair.tables)
    async with pair.monolith.session() as source:
        await source.execute(fill(SERVICE), 100)
    environment = SwitchEnvironment(plan, pair, control)
    await plans.register(control, plan, "test")
    await flags.ensure(control, MIGRATION, SERVICE)
    await environment.stream("forward").start(copy=True)
    await environment.changed("forward").prepare()
    try:
        yield environment
    finally:
        await drop_streams(environment)


class Processes:
    """The clients' processes and their logs."""

    def __init__(self, env: SwitchEnvironment, folder: Path) -> None:
        self._folder = folder
        databases = {"monolith": env.pair.monolith, SERVICES[SERVICE]: env.pair.target, "control": env.control.database}
        dsns = {variable(name): database.dsn for name, database in databases.items()}
        self._environment = {**os.environ, **dsns}
        self.running: dict[str, asyncio.subprocess.Process] = {}

    @property
    def logs(self) -> list[Path]:
        return [self.log(name) for name in self.running]

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"

    async def start(self, name: str, module: str, *arguments: str) -> None:
        self.running[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "--service", SERVICE, "--log", str(self.log(name)), *arguments),
            env=self._environment,
            cwd=Path(__file__).parents[2],
            stdout=asyncio.subprocess.DEVNULL,
        )

    async def client(self, number: int) -> None:
        """One of two."""
        shape = ("--client", str(number), "--clients", "2", "--loops", "3", "--keys", "8", "--shared", "2")
        await self.start(f"client-{number}", "chaos.traffic", *shape, "--rate", "120", "--reads", "60")

    async def more(self, words: str, number: int = 20) -> None:
        """Waits until each log has so many more lines that hold these words."""
        before = {name: self._count(name, words) for name in self.running}

        async def grown() -> bool:
            return all(self._count(name, words) >= before[name] + number for name in self.running)

        await until(grown, f"{number} more lines {words} in each log", 15)

    def _count(self, name: str, words: str) -> int:
        return self.log(name).read_text().count(words) if self.log(name).exists() else 0

    async def end(self, name: str, number: signal.Signals) -> int:
        self.running[name].send_signal(number)
        return await asyncio.wait_for(self.running[name].wait(), 20)


@asynccontextmanager
async def processes(env: SwitchEnvironment, folder: Path) -> AsyncIterator[Processes]:
    made = Processes(env, folder)
    try:
        yield made
    finally:
        for process in made.running.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


async def switch(env: SwitchEnvironment, to_side: Side) -> Switch:
    """One that is done, with the time in which it was."""
    await reverse.make_ready(env, to_side)
    begun = time.monotonic()
    request = order(env, to_side)
    outcome = await section.run(env, request, lambda _: None)
    ended = time.monotonic()
    assert outcome.result == "done", outcome.reason
    await finish.finish(env, request)
    return Switch(outcome.epoch, to_side, begun, ended)


async def kill_inside_a_write(env: SwitchEnvironment, clients: Processes, number: int) -> None:
    """SIGKILL while a write of this client waits for a lock at the service, which then goes away."""
    async with env.pair.target.session() as holder, env.pair.target.session() as looker:

        async def waits() -> bool:
            sql = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'"
            return bool(await looker.fetchval(sql, f"chaos-{number}"))

        async with holder.transaction():
            await holder.execute(f"LOCK TABLE {events(SERVICE)} IN SHARE MODE")
            await until(waits, "a write of the client waits for the lock")
            await clients.end(f"client-{number}", signal.SIGKILL)


@pytest.mark.slow
async def test_a_switch_and_a_way_back_with_a_client_killed_leave_a_history_without_a_fault(
    env: SwitchEnvironment, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(relays(env.pair))
        clients = await stack.enter_async_context(processes(env, tmp_path))
        await asyncio.gather(clients.client(0), clients.client(1))
        await clients.start("bypass", "chaos.bypass", "--rate", "40")
        await Backfill(env.pair, "forward").run()
        await until(env.stream("forward").ready, "the forward stream is ready")
        await verify(env)
        await clients.more('"ok"')

        done = [await switch(env, "service")]
        await clients.more('"side":"service"')
        await kill_inside_a_write(env, clients, 1)
        await clients.client(1)
        await clients.more('"side":"service"')
        done.append(await switch(env, "monolith"))
        await clients.more('"side":"monolith"')

        for name in clients.running:
            assert await clients.end(name, signal.SIGTERM) == 0
        stream = env.stream(direction_from("monolith"))
        await stream.await_marker(await stream.put_marker(), 20)
        left: dict[Side, Rows] = {side: await read_rows(env.pair.at(side), SERVICE) for side in SIDES}
        recorded = await done_switches(env.control, MIGRATION)

    assert [(one.epoch, one.side) for one in recorded[SERVICE]] == [(one.epoch, one.side) for one in done]
    for switches in (done, recorded[SERVICE]):
        verdict = await asyncio.to_thread(check, clients.logs, {SERVICE: left}, {SERVICE: switches})
        assert verdict.ok, verdict.shown
    counts = verdict.counts
    kinds = [f"client ok items {kind}" for kind in ("insert", "update", "delete", "increment")]
    sides = [f"{who} accepted at {side}" for who in ("client", "bypass") for side in ("monolith", "service")]
    refused = ["bypass fenced at monolith", "bypass fenced at service"]
    others = ["client ok events insert", "bypass ok events insert", "bypass ok items insert", "bypass ok items update"]
    reads = ["reads read_your_writes", "reads stale_ok", "rows read", "rows compared", "transactions acknowledged"]
    assert [name for name in [*kinds, *sides, *refused, *others, *reads] if not counts.get(name)] == [], counts
    assert counts["switches proved by writes"] == 2
    assert "client accepted at an unknown side" not in counts
    assert counts["client unknown"] > 0  # what the killed client had under way
    assert len(left["monolith"].items) > 100  # those of the ground as well
