"""A switch, its rollback and a second switch on every major version, and between the oldest and the newest.

Below 16 the two directions of `logical` must never run at once, so the fenced section itself turns the stream round.
An ordinary run takes one older server beside the usual one, CUTOVER_PROVE_VERSIONS=all the rest (`make test-versions`).
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import get_args

import asyncpg
import pytest
import pytest_asyncio

from cutover import faults
from cutover.control.database import Control
from cutover.devstack.cluster import Cluster
from cutover.dualwrite import ServicePool
from cutover.errors import Conflict, GateClosed, NotYet
from cutover.plan.models import Consistency
from cutover.postgres import fence
from cutover.postgres.databases import SIDES, Database, Side, direction_from, other
from cutover.streams.outbox import Backfill
from cutover.switch import finish, reverse, section
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchOutcome
from tests.dualwrite.both_sides import Both, open_both, plan
from tests.servers import Clusters, create_database, drop_database
from tests.switch.conftest import drop_streams, order, verify
from tests.switch.test_outbox import relays as outbox_relays
from tests.versions import USUAL, VERSIONS, run_cluster
from tests.waiting import until

ALL = os.environ.get("CUTOVER_PROVE_VERSIONS") == "all"
OLDEST = VERSIONS[0]
#: The monolith's version and the service's.
PAIRS = [*((major, major) for major in VERSIONS), (OLDEST, USUAL), (USUAL, OLDEST)] if ALL else [(USUAL, 15)]
KINDS = ("logical", "eventual", "strong") if ALL else ("logical",)
WRITERS = 3
WAYS: tuple[Side, ...] = ("service", "monolith", "service")
#: The subscriptions of a database that are enabled, or whose worker is still there.
RUNNING = (
    "SELECT coalesce(array_agg(subname::text), '{}') FROM pg_subscription s "
    "WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND (subenabled OR EXISTS (SELECT FROM pg_stat_subscription t WHERE t.subid = s.oid AND t.pid IS NOT NULL))"
)


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0]} to {pair[1]}")
def servers(clusters: Clusters, request: pytest.FixtureRequest) -> Iterator[Clusters]:
    with clusters_of(request.param, clusters) as both:
        yield both


@contextmanager
def clusters_of(majors: tuple[int, int], usual: Clusters) -> Iterator[Clusters]:
    """The monolith's cluster and the service's, of these versions."""
    monolith, service = majors
    with (
        cluster_of("monolith", monolith, usual.monolith) as one,
        cluster_of("services", service, usual.services) as two,
    ):
        yield Clusters(one, two)


@contextmanager
def cluster_of(name: str, major: int, usual: Cluster) -> Iterator[Cluster]:
    if major == USUAL:
        yield usual
        return
    with run_cluster(name, major) as started:
        yield started


@dataclass
class Writers:
    """Clients of the library that count in rows of their own and in one that they share; what they were told."""

    trading: ServicePool
    #: Seconds between two writes of one.
    pause: float = 0.004
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    done: Counter[str] = field(default_factory=Counter)
    rows: set[int] = field(default_factory=set)

    async def write(self, number: int) -> None:
        """Every error ends the test: a switch holds writes back, and refuses none."""
        turn = 0
        while not self.enough.is_set():
            turn += 1
            mine, row = f"writer {number}", number * 1_000_000 + turn

            async def add(connection: asyncpg.pool.PoolConnectionProxy, mine: str = mine, row: int = row) -> None:
                for account in sorted((mine, "shared")):
                    await connection.execute("UPDATE positions SET amount = amount + 1 WHERE account = $1", account)
                await connection.execute("INSERT INTO trades (id, name) VALUES ($1, $2)", row, f"n{row}")
                if row % 5 == 0:
                    await connection.execute("DELETE FROM trades WHERE id = $1", row - 4)

            await self.trading.run_in_transaction(add)
            self.done.update((mine, "shared"))
            self.rows.add(row)
            if row % 5 == 0:
                self.rows.remove(row - 4)
            await asyncio.sleep(self.pause)

    async def more(self) -> None:
        """Returns once some more writes were acknowledged."""
        before = self.done["shared"]

        async def went_on() -> bool:
            return self.done["shared"] >= before + 10

        await until(went_on, "writes go on")


@dataclass
class Moving:
    """A service between the two servers, under writers."""

    both: Both
    env: SwitchEnvironment
    writers: Writers

    async def switch(self, to_side: Side) -> SwitchOutcome:
        """Steps 2 to 12 of design 5.6."""
        await reverse.make_ready(self.env, to_side)
        request = order(self.env, to_side)
        outcome = await section.run(self.env, request, lambda _: None)
        if outcome.result == "done":
            await finish.finish(self.env, request)
        return outcome

    async def carried(self, primary: Side) -> None:
        """Returns once all that was committed at the primary is at the other side."""
        stream = self.env.stream(direction_from(primary))
        await stream.await_marker(await stream.put_marker(), 20)

    async def require_nothing_lost(self, primary: Side) -> None:
        """Both sides hold the same, each acknowledged write once, and nothing else."""
        await self.carried(primary)
        await self.both.require_equal()
        async with self.both.databases[other(primary)].session("test") as connection:
            found = await connection.fetch("SELECT account, amount FROM positions")
            rows = await connection.fetch("SELECT id FROM trades WHERE id >= 1000000")
        assert {row["account"]: int(row["amount"]) for row in found} == dict(self.writers.done)
        assert {row["id"] for row in rows} == self.writers.rows


@asynccontextmanager
async def relays(env: SwitchEnvironment) -> AsyncIterator[None]:
    """One of each direction; where the stream is not an outbox, or a direction is not started, there are none."""
    if env.service.stream != "outbox":
        yield
        return
    async with outbox_relays(env.pair):
        yield


async def backfilled(env: SwitchEnvironment) -> None:
    """The forward stream has made its first copy, and a full pass has verified it."""
    forward = env.stream("forward")
    await forward.prepare()
    await env.changed("forward").prepare()
    await forward.start(copy=True)
    if env.service.stream == "outbox":
        await Backfill(env.pair, "forward").run()
    await until(forward.ready, "the first copy is done")
    async with env.pair.target.session("test") as sink:
        await fence.make_always(sink, env.pair.tables)
    await verify(env)


@asynccontextmanager
async def open_moving(
    servers: Clusters, control: Control, control_db: Database, kind: str, patience: float = 3.0
) -> AsyncIterator[Moving]:
    """Backfilled and streaming forwards between new databases of those servers. `patience` is that of the writers."""
    level = kind if kind in get_args(Consistency) else None
    chosen = plan(stream="outbox" if level else "logical", **({"consistency": level} if level else {}))
    async with AsyncExitStack() as stack:
        monolith = await create_database(servers.monolith, "monolith")
        stack.push_async_callback(drop_database, servers.monolith, monolith)
        service = await create_database(servers.services, "service_db")
        stack.push_async_callback(drop_database, servers.services, service)
        both = await stack.enter_async_context(open_both(control, control_db, monolith, service, chosen))
        env = SwitchEnvironment(chosen, both.pair, control)
        stack.push_async_callback(drop_streams, env)
        names = ["shared", *(f"writer {number}" for number in range(1, WRITERS + 1))]
        async with both.databases["monolith"].session("test") as source:
            await source.executemany("INSERT INTO positions VALUES ($1, '', 0)", [(name,) for name in names])
            await source.execute("INSERT INTO trades (id, name) SELECT n, 'old ' || n FROM generate_series(1, 300) n")
        await stack.enter_async_context(relays(env))
        await backfilled(env)
        pool = await both.open(levels={both.pair.service: level} if level else None, patience=patience)
        yield Moving(both, env, Writers(pool.service(both.pair.service)))


@pytest_asyncio.fixture(params=KINDS)
async def moving(
    servers: Clusters, control: Control, control_db: Database, request: pytest.FixtureRequest
) -> AsyncIterator[Moving]:
    async with open_moving(servers, control, control_db, request.param) as made:
        yield made


@asynccontextmanager
async def under_writers(moving: Moving) -> AsyncIterator[None]:
    """Writers for the block; an error of one of them is the test's."""
    async with asyncio.TaskGroup() as group:
        for number in range(1, WRITERS + 1):
            group.create_task(moving.writers.write(number))
        try:
            await moving.writers.more()
            yield
        finally:
            moving.writers.enough.set()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_switch_a_rollback_and_a_second_switch_lose_nothing(moving: Moving) -> None:
    async with under_writers(moving):
        for to_side in WAYS:
            outcome = await moving.switch(to_side)
            assert outcome.result == "done", outcome.reason
            await moving.writers.more()
            assert (await moving.env.stream(direction_from(to_side)).health()).ok
    await moving.require_nothing_lost("service")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("moving", KINDS[:2], indirect=True)  # a strong write is one at both sides
async def test_what_a_stream_has_brought_is_no_changed_key_and_what_was_written_here_is(moving: Moving) -> None:
    """Below 16 the server does not leave it out itself."""
    await reverse.make_ready(moving.env, "service")
    async with moving.env.changed("reverse") as changed, moving.env.changed("forward") as source:
        async with under_writers(moving):
            await moving.writers.more()
        await moving.carried("monolith")
        await changed.drain()
        await source.drain()
        assert sum((await source.tail()).values()) > 0
        assert sum((await changed.tail()).values()) == 0


#: Where a switch stops in the turn, and where its undo stops as well.
STOPS = ("turn.renew.after", "turn.halt.after", "turn.begin.after", "turn.prove.after", "switch.turn.after")
UNDO_STOPS = ("undo.shut.after", "undo.halt.after", "undo.resume-stream.after")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("moving", ["logical"], indirect=True)
async def test_an_undo_in_the_turn_brings_the_old_stream_back_without_a_gap(
    moving: Moving, request: pytest.FixtureRequest
) -> None:
    """On the way forward and on the way back; afterwards both ways are gone."""
    turns = min(request.node.callspec.params["servers"]) < 16
    async with under_writers(moving):
        for to_side in WAYS[:2]:
            for point in STOPS if turns and ALL else STOPS[-1:]:
                await undone(moving, to_side, point)
            for point in UNDO_STOPS if turns and ALL else UNDO_STOPS[:1]:
                await undone(moving, to_side, STOPS[-1], point)
            outcome = await moving.switch(to_side)
            assert outcome.result == "done", outcome.reason
            await moving.writers.more()
    await moving.require_nothing_lost("monolith")


async def undone(
    moving: Moving, to_side: Side, point: str, undo_point: str = "", look: faults.Handler | None = None
) -> None:
    """A switch that fails at that point, once, and its undo at the other; the old side goes on, and its stream."""
    reached: list[str] = []

    async def fail(passed: str) -> None:
        if look:
            await look(passed)
        if passed in (point, undo_point) and passed not in reached:
            reached.append(passed)
            raise NotYet(f"injected at {passed}")

    await reverse.make_ready(moving.env, to_side)
    wanted = order(moving.env, to_side)
    with faults.armed(fail):
        if undo_point:
            with pytest.raises(NotYet, match=undo_point):
                await section.run(moving.env, wanted, lambda _: None)
        outcome = await section.run(moving.env, wanted, lambda _: None)
    assert reached == [one for one in (point, undo_point) if one]
    assert outcome.result == "undone"
    assert outcome.reason is not None
    assert point in outcome.reason
    primary = other(to_side)
    stream = moving.env.stream(direction_from(primary))

    async def healthy() -> bool:
        return (await stream.health()).ok

    await until(healthy, "the old stream runs again")
    if not look:
        await moving.writers.more()
    await moving.carried(primary)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moving", ["logical"], indirect=True)
async def test_what_only_stands_ready_flows_only_beside_servers_that_tell_origins_apart(
    moving: Moving, request: pytest.FixtureRequest
) -> None:
    turns = min(request.node.callspec.params["servers"]) < 16
    stream = moving.env.stream("reverse")
    await reverse.make_ready(moving.env, "service")
    assert (await stream.health()).ok is not turns
    if turns:
        with pytest.raises(Conflict, match="round in circles"):
            await stream.start(copy=False)
    slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    assert await moving.both.on("service", slots) == 2
    await reverse.take_back(moving.env, "service")
    assert await moving.both.on("service", slots) == 0
    with pytest.raises(GateClosed, match="way back"):
        await section.run(moving.env, order(moving.env, "service"), lambda _: None)
    assert await moving.both.on("service", slots) == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moving", ["logical"], indirect=True)
async def test_below_16_both_directions_never_run_at_once(moving: Moving, request: pytest.FixtureRequest) -> None:
    """Looked at before and after each step of a switch, of an undone one and of the way back."""
    if min(request.node.callspec.params["servers"]) >= 16:
        pytest.skip("both directions may run at once")
    seen: dict[str, list[str]] = {}

    async def look(point: str) -> None:
        seen[point] = [name for side in SIDES for name in await moving.both.on(side, RUNNING)]

    with faults.armed(look):
        for to_side in WAYS[:2]:
            assert (await moving.switch(to_side)).result == "done"
            assert {len(running) for running in seen.values()} <= {0, 1}, seen
            assert seen["turn.begin.before"] == []
            seen.clear()
    await undone(moving, "service", STOPS[-1], look=look)
    assert {len(running) for running in seen.values()} <= {0, 1}, seen
    assert len(seen["undo.resume-stream.after"]) == 1
