"""Whatever a switch, its recovery or what goes beside it has left, the doctor's one command leads on to the end.

Another death than that in `test_mending`: the mending itself ends at each of its steps, and the attempt that it ends
has not died but sleeps, and wakes up when all is over.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import pytest_asyncio

from cutover import doctor, faults
from cutover.control import stages
from cutover.control.database import Control
from cutover.errors import NotYet, Unreachable
from cutover.flags import store as flags
from cutover.monitor import catalogs
from cutover.postgres import fence, outbox_quarantine
from cutover.postgres.databases import SIDES, Database, Side, other
from cutover.postgres.outbox_schema import outbox_table
from cutover.postgres.outbox_source import Change
from cutover.streams.logical import LogicalStream
from cutover.streams.outbox import OutboxStream
from cutover.switch import finish, reverse, section
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.mending import mend
from tests.switch.conftest import OUTBOX_PLAN, TABLES, Work, drop_streams, installed, order, verify
from tests.switch.test_mending import POINTS, Killed, dropped, in_order
from tests.switch.test_outbox import relays
from tests.switch.test_section import same_rows, writable
from tests.waiting import until

UNBEGUN = ("switch.token", "switch.seize", "switch.clear")
READY = ("ready.keep", "ready.prepare", "ready.changed", "ready.start", "ready.prove")
UNDO = ("undo.decide", "undo.open", "undo.resume", "undo.shut", "recovery.done")
COMPLETE = ("complete.marker", "complete.open", "complete.flip", "complete.shut", "recovery.done")
TAKE_BACK = ("take-back.changed", "take-back.stream")
FINISH = ("finish.prove", "finish.changed", "finish.stream")
#: Driven by a test of its own; or passed only where the two directions take turns (a server below 16).
ELSEWHERE = {"ready.drop", "undo.reopen"}
TURNS = {"ready.arm", "undo.halt", "undo.resume-stream"}

Deed = Callable[[], Awaitable[object]]


def test_every_step_of_a_switch_and_of_what_goes_beside_it_is_driven_to_the_end() -> None:
    groups = {"switch", "ready", "undo", "complete", "recovery", "take-back", "finish"}
    wanted = {name for name in faults.STEPS if name.partition(".")[0] in groups} - ELSEWHERE - TURNS
    walked = {*UNBEGUN, *READY, *UNDO, *COMPLETE, *TAKE_BACK, *FINISH}
    assert walked | {point.rpartition(".")[0] for point in POINTS} == wanted


async def killed_at(point: str, work: Deed, lead: str = "") -> None:
    """That work, ended at the point; at `lead` a connection is lost before."""

    async def die(at: str) -> None:
        if at == lead:
            raise ConnectionResetError("lost")
        if at == point:
            raise Killed

    with faults.armed(die), pytest.raises(Killed):
        await work()


def cuts(steps: Sequence[str]) -> list[str]:
    """Where their work can be cut in two; what was done before a step is what the one before it had done."""
    return [f"{steps[0]}.before", *(f"{step}.after" for step in steps[:-1])]


async def killed_everywhere(env: SwitchEnvironment, steps: Sequence[str], work: Deed) -> None:
    """What the doctor says helps whatever of these steps it was killed at; nothing of it has to be done by hand."""
    for point in cuts(steps):
        await killed_at(point, work)
        await led_on(env)
    await one_side_is_writable(env)


async def led_on(env: SwitchEnvironment) -> None:
    """A person does what the doctor says until it has nothing more to say."""
    for _ in range(3):
        found = await doctor.examine(env.plan, env.pair, env.control)
        if not found.problems:
            break
        assert found.remedy == f"cutover doctor test --service {env.pair.service} --mend", found
        await mend(env, lambda _: None)
    assert found.problems == []
    assert found.remedy == ""


async def one_side_is_writable(env: SwitchEnvironment) -> None:
    primary = (await flags.get(env.control, "test", env.pair.service)).primary_side
    assert await writable(env, primary)
    assert not await writable(env, other(primary))


async def mending_killed(env: SwitchEnvironment, steps: Sequence[str]) -> None:
    """The one command, ended at each step in turn; it leads on from there as well."""
    for point in cuts(steps):
        found = await doctor.examine(env.plan, env.pair, env.control)
        assert found.remedy.endswith("--mend"), (point, found)
        await killed_at(point, lambda: mend(env, lambda _: None))
    await led_on(env)
    await one_side_is_writable(env)


async def overtaken(env: SwitchEnvironment, to_side: Side, point: str, steps: Sequence[str]) -> None:
    """A switch that sleeps at that point while it is mended, however often that is killed, and then wakes up."""
    asleep, wake = asyncio.Event(), asyncio.Event()

    async def sleep(at: str) -> None:
        if at == point:
            asleep.set()
            await wake.wait()

    with faults.armed(sleep):
        attempt = asyncio.create_task(section.run(env, order(env, to_side), lambda _: None))
        await asyncio.wait_for(asleep.wait(), 20)
    await mending_killed(env, steps)
    before = await flags.get(env.control, "test", env.pair.service)
    wake.set()
    with pytest.raises((NotYet, Unreachable)):
        await attempt
    assert await flags.get(env.control, "test", env.pair.service) == before
    await one_side_is_writable(env)


async def walk(env: SwitchEnvironment, *, beside: bool) -> None:
    """A switch undone, and one that goes through, with a death in every step; `beside`: and of what prepares it."""

    def ready() -> Awaitable[object]:
        return reverse.make_ready(env, "service")

    def begin() -> Awaitable[object]:
        return section.run(env, order(env, "service"), lambda _: None)

    if beside:
        await killed_everywhere(env, READY, ready)
    await ready()
    if beside:
        await killed_everywhere(env, (*UNBEGUN, "switch.begin"), begin)
    await overtaken(env, "service", "switch.fence.after", UNDO)
    assert (await flags.get(env.control, "test", env.pair.service)).primary_side == "monolith"
    if beside:
        await killed_everywhere(env, TAKE_BACK, lambda: reverse.take_back(env, "service"))
        await ready()
    await overtaken(env, "service", "switch.journal.after", COMPLETE)
    assert (await flags.get(env.control, "test", env.pair.service)).primary_side == "service"
    await killed_everywhere(env, FINISH, lambda: finish.finish(env, order(env, "service")))
    await finish.finish(env, order(env, "service"))
    assert not await env.stream("forward").exists()
    stream = env.stream("reverse")
    await stream.await_marker(await stream.put_marker(), 20)
    assert await same_rows(env)


@pytest.mark.slow
async def test_a_switch_killed_in_any_step_is_led_to_its_end(env: SwitchEnvironment, work: Work) -> None:
    await walk(env, beside=True)


async def test_a_switch_whose_undoing_was_cut_off_while_the_control_database_was_away_is_led_back(
    env: SwitchEnvironment, work: Work
) -> None:
    await reverse.make_ready(env, "service")

    async def begin() -> None:
        await section.run(env, order(env, "service"), lambda _: None)

    async def without_control(at: str) -> None:
        if at in ("switch.marker.before", "undo.decide.before"):
            raise ConnectionResetError("lost")
        if at == point:
            raise Killed

    for point in ("undo.reopen.before", "undo.reopen.after"):
        with faults.armed(without_control), pytest.raises(Killed):
            await begin()
        assert await writable(env, "monolith") == point.endswith("after")
        found = await doctor.examine(env.plan, env.pair, env.control)
        assert found.remedy.endswith("--mend")
        await led_on(env)
    await one_side_is_writable(env)


async def test_a_lost_way_back_whose_making_anew_was_cut_off_is_made_by_the_next_switch(
    env: SwitchEnvironment, work: Work
) -> None:
    await reverse.make_ready(env, "service")
    stream = env.stream("reverse")
    assert isinstance(stream, LogicalStream)
    slot = stream.subscription

    async def gone() -> bool:
        async with env.pair.target.session() as source:
            return await dropped(source, slot)

    for point in ("ready.drop.before", "ready.drop.after"):
        if await stream.exists():
            await stream.stop()
            await until(gone, "the slot is gone")
        await killed_at(point, lambda: reverse.make_ready(env, "service"))
        await led_on(env)
    await reverse.make_ready(env, "service")
    assert (await section.run(env, order(env, "service"), lambda _: None)).result == "done"


@pytest_asyncio.fixture
async def outbox(monolith_db: Database, service_db: Database, control: Control) -> AsyncIterator[SwitchEnvironment]:
    """The same of `stream: outbox`, with relays that run."""
    env = await installed(monolith_db, service_db, control, OUTBOX_PLAN)
    pair = env.pair
    async with pair.target.session() as sink:
        await fence.make_always(sink, TABLES)
    await stages.set_stage(control, "test", pair.service, "ready")
    await catalogs.take(control, pair, env.plan.hash, by="test")
    await env.stream("forward").start(copy=False)
    await env.changed("forward").prepare()
    async with pair.monolith.session() as source:
        await source.execute("INSERT INTO trades (price, note) SELECT i, 'row ' || i FROM generate_series(1, 50) i")
    try:
        async with relays(pair):
            await until(env.stream("forward").ready, "the forward stream is ready")
            await verify(env)
            yield env
    finally:
        await drop_streams(env)


@pytest.mark.slow
async def test_a_switch_on_the_outbox_killed_in_any_step_is_led_to_its_end(outbox: SwitchEnvironment) -> None:
    await walk(outbox, beside=False)


async def test_keys_in_quarantine_and_a_stopped_outbox_are_led_on_one_after_the_other(
    outbox: SwitchEnvironment,
) -> None:
    service, stream = outbox.pair.service, outbox.stream("forward")
    assert isinstance(stream, OutboxStream)
    intent = f"SELECT shard, version FROM {outbox_table(service).sql} WHERE tbl = 'trades' AND key = ARRAY['1']"
    async with outbox.pair.monolith.session() as source, source.transaction():
        await source.execute("UPDATE trades SET note = 'refused' WHERE id = 1")
        (row,) = await source.fetch(intent)
        change = Change("trades", ("1",), row["shard"], row["version"], None, ())
        await outbox_quarantine.hold(source, service, "forward", change, "23514", "a constraint")
    (held,) = await stream.held()
    await stream.stop()
    found = await doctor.examine(outbox.plan, outbox.pair, outbox.control)
    assert found.remedy == f"cutover doctor test --service {service} --mend"
    assert "the forward stream is started again" in await mend(outbox, lambda _: None)
    found = await doctor.examine(outbox.plan, outbox.pair, outbox.control)
    assert found.remedy == f"cutover quarantine retry test {service} {held.id} --reason WHY"
    await stream.retry([held.id], by="test", why="mended")
    await until(stream.ready, "relays look after every shard again")
    await in_order(outbox)


async def test_an_outbox_that_missed_how_unique_values_changed_hands_is_led_to_its_end(
    outbox: SwitchEnvironment,
) -> None:
    """What nobody carried holds up neither what comes after it nor the passes that mend it."""
    both_sides = "SELECT (SELECT jsonb_agg(t ORDER BY id) FROM trades t)::text"
    for side in SIDES:
        async with outbox.pair.at(side).session() as connection:
            await connection.execute("CREATE UNIQUE INDEX ON trades (note)")
    async with outbox.pair.monolith.session() as source, outbox.pair.target.session() as sink:
        for table in ("trades", "positions"):
            await source.execute(f"ALTER TABLE {table} DISABLE TRIGGER cutover_capture")
        await source.execute(
            "DELETE FROM trades WHERE id = 1; UPDATE trades SET note = NULL WHERE id IN (2, 3);"
            "UPDATE trades SET note = 'row 3' WHERE id = 4"
        )

        async def go_on(at: str) -> None:
            """Behind the gap, before anything is compared."""
            if at == "rebuild.mend.before" and not await source.fetchval("SELECT count(*) FROM trades WHERE id = 101"):
                await source.execute(
                    "INSERT INTO trades (id, note) VALUES (101, 'row 1'); UPDATE trades SET note = 'row 2' WHERE id = 5"
                )

        with faults.armed(go_on):
            await mend(outbox, lambda _: None)
        stream = outbox.stream("forward")
        assert isinstance(stream, OutboxStream)
        assert await stream.held() == []
        await stream.await_marker(await stream.put_marker(), 10)
        assert await source.fetchval(both_sides) == await sink.fetchval(both_sides)

        async def healthy() -> bool:
            return (await stream.health()).ok

        await until(healthy, "relays take back what they told of the stream while it was made anew")


async def test_a_switch_whose_new_side_is_open_already_asks_the_old_one_for_nothing(outbox: SwitchEnvironment) -> None:
    """The old primary has crashed and lost its last `forget`, so an intent that was carried over is there again."""
    await reverse.make_ready(outbox, "service")
    request = order(outbox, "service")
    await killed_at("switch.commit.after", lambda: section.run(outbox, request, lambda _: None))
    await outbox.stream("forward").stop()
    async with outbox.pair.monolith.session() as source:
        await source.execute(
            f"INSERT INTO {outbox_table(outbox.pair.service).sql} (shard, version, op, tbl, key, xid) "
            "VALUES (0, 1, 'I', 'public.trades', '{1}', '3')"
        )
    outcome = await section.run(outbox, request, lambda _: None)
    assert (outcome.result, outcome.recovered) == ("done", True)
    assert await writable(outbox, "service")
    assert not await writable(outbox, "monolith")
