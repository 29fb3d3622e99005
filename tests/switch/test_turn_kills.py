"""Directions that take turns, where a process ends, sleeps or loses a COMMIT at each fault point of the turn.

Such pairs have a server below 16, and the crash matrix runs on the usual version: its processes, faults and calls are
used here. An ordinary run takes a part of the faults, CUTOVER_PROVE_VERSIONS=all each at each point, on more pairs.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from chaos.injection import KINDS, Fault, Kind
from chaos.turns import Driver, Turn
from cutover.control import checks, stages
from cutover.control.database import Control
from cutover.flags import store as flags
from cutover.monitor import catalogs
from cutover.postgres.databases import SIDES, Database, Side, Through, other
from cutover.streams.logical import LogicalStream
from cutover.switch import reverse
from cutover.switch.turn import turns_of
from tests.dualwrite.both_sides import SERVICE, Both
from tests.servers import Clusters
from tests.switch.places import driver, planned
from tests.switch.test_versions import ALL, OLDEST, RUNNING, WAYS, Moving, clusters_of, open_moving, under_writers
from tests.versions import USUAL

PAIRS = [(USUAL, 15), *([(15, USUAL), (OLDEST, OLDEST)] if ALL else [])]
STEPS = ("ready.arm", "turn.renew", "turn.halt", "turn.begin", "turn.prove")
UNDO = ("undo.halt", "undo.resume-stream")
#: What is there to be undone, and that it had all of the turn behind it.
LEAD = Fault("switch.turn.after", "error")
#: Beyond the pause's limit and the silence after which another attempt begins.
ASLEEP = 6.0
#: Faults of one switch, each of which may undo it; a driver gives up after a few more.
MOST = 5


def fault(point: str, kind: Kind) -> Fault:
    """One before, and one after its COMMIT is sent or its server has answered; what sleeps is overtaken."""
    return Fault(point, kind, ASLEEP if kind == "delay" else 0.0, hard=kind == "delay" or point.endswith(".after"))


#: Behind this point its process commits nothing any more.
NOTHING_LEFT = [fault("ready.arm.after", "reset")]


def ordinary(one: Fault) -> bool:
    """Each point is killed at; of the rest there is an example."""
    return one.kind == "kill" or one.point == "turn.begin.after"


def switches() -> Iterator[tuple[Fault, ...]]:
    """All faults at all points, those of one kind one after the other in a few switches."""
    for kind in KINDS:
        for steps in (STEPS, UNDO):
            every = [fault(f"{step}.{place}", kind) for step in steps for place in ("before", "after")]
            chosen = [one for one in every if (ALL or ordinary(one)) and one not in NOTHING_LEFT]
            for first in range(0, len(chosen), MOST):
                some = chosen[first : first + MOST]
                yield (LEAD, *some) if steps is UNDO else tuple(some)


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0]} to {pair[1]}")
def servers(clusters: Clusters, request: pytest.FixtureRequest) -> Iterator[Clusters]:
    with clusters_of(request.param, clusters) as both:
        yield both


@asynccontextmanager
async def never_both(both: Both) -> AsyncIterator[None]:
    """Fails the block's test where both directions were seen to run: the one, then the other, and still the one."""
    seen: list[str] = []

    async def watch() -> None:
        one, two = [await asyncpg.connect(both.databases[side].dsn) for side in SIDES]
        try:
            while True:
                first, second, again = [await at.fetchval(RUNNING) for at in (one, two, one)]
                if second and set(first) & set(again):
                    seen.append(f"{first[0]} and {second[0]}")
                await asyncio.sleep(0.02)
        finally:
            await one.close()
            await two.close()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert watching.cancelled(), watching.exception()
    assert not seen, f"both directions ran at once: {seen[0]}"


async def only_at(moving: Moving, primary: Side) -> None:
    """Writes go on at that side, and the other one refuses them."""
    await moving.writers.more()
    assert (await flags.get(moving.env.control, moving.env.pair.migration, SERVICE)).primary_side == primary
    with pytest.raises(asyncpg.PostgresError, match="writable"):
        await moving.both.on(other(primary), "DELETE FROM positions WHERE false")


async def struck(moving: Moving, calling: Driver, to_side: Side, sequence: tuple[Fault, ...]) -> None:
    """A switch with those faults in it, called until it is done: undone at most as often as they explain."""
    turn = Turn(to_side, [calling.strike(faults=sequence)])
    await calling.switch(turn)
    await calling.awake()
    turn.count()
    assert turn.harm == len(sequence), f"only {turn.harm} of {[str(one) for one in sequence]} happened"
    turn.judge(stormy=False)
    await calling.in_order(to_side)
    await only_at(moving, to_side)


@pytest.mark.slow
@pytest.mark.timeout(900 if ALL else 300)
async def test_a_turn_that_is_struck_anywhere_ends_with_one_direction_and_loses_nothing(
    servers: Clusters, control: Control, control_db: Database, tmp_path: Path
) -> None:
    """The service goes there and back; in every other switch the doctor's remedy comes before the next call."""
    async with open_moving(servers, control, control_db, "logical", patience=30.0) as moving:
        env = moving.env
        await checks.ensure(control, env.plan)
        await catalogs.take(control, env.pair, env.plan.hash, by="test")
        await stages.set_stage(control, env.pair.migration, SERVICE, "ready")
        named = {"monolith": env.pair.monolith, env.service.database: env.pair.target}
        place = planned(env.plan, SERVICE, control_db, named, tmp_path)
        moving.writers.pause = 0.02
        to_side: Side = "service"
        async with never_both(moving.both), under_writers(moving):
            for number, sequence in enumerate(switches()):
                await struck(moving, driver(place, control, tmp_path, doctored=number % 2 == 1), to_side, sequence)
                to_side = other(to_side)
        await moving.require_nothing_lost(other(to_side))


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_way_back_that_lost_its_slot_in_the_turn_is_made_anew_with_the_record_of_its_keys(
    servers: Clusters, control: Control, control_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an attempt ends between the drop of the armed stream's slot and its renewal, while rows arrive."""
    async with open_moving(servers, control, control_db, "logical") as moving:
        await reverse.make_ready(moving.env, "service")
        turns = await turns_of(moving.env, "reverse")
        assert turns is not None, "the two directions take turns"
        async with moving.env.pair.target.session("test") as connection:
            await turns.drop_slot_on(connection)
        drop, waits = LogicalStream.drop, ["reverse"]

        async def while_rows_arrive(stream: LogicalStream, through: Through | None = None) -> None:
            await drop(stream, through)
            if waits and stream.direction == waits[0]:
                waits.clear()
                await moving.both.on("monolith", "INSERT INTO trades (id, name) VALUES (999, 'between')")
                await moving.carried("monolith")

        monkeypatch.setattr(LogicalStream, "drop", while_rows_arrive)
        for to_side in WAYS:
            outcome = await moving.switch(to_side)
            assert outcome.result == "done", outcome.reason
        assert await moving.both.on("monolith", "SELECT name FROM trades WHERE id = 999") == "between"
        await moving.both.require_equal()
