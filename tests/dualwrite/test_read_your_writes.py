"""Reads that must see their writes: at the new side with the read flag where all writes are at both sides, else not."""

import asyncio
import contextvars
import time
from contextlib import suppress
from datetime import timedelta

import asyncpg
import pytest
from sqlalchemy import text

from cutover.control.database import Control
from cutover.dualwrite import ServicePool, mirror
from cutover.dualwrite.alchemy import routed_engine
from cutover.dualwrite.errors import Fenced, SecondaryAway
from cutover.dualwrite.two_sides import TwoSides
from cutover.errors import StaleAttempt
from cutover.flags import store
from cutover.postgres import two_phase
from cutover.postgres.databases import Database, Side
from cutover.streams.outbox import OutboxStream
from tests.dualwrite.both_sides import MIGRATION, SERVICE, Both, add, open_both, plan
from tests.dualwrite.waiting import until

ASK = "SELECT current_setting('port')"
#: Beside a read's own answer: nothing is there that no relay has carried.
INSERT = "INSERT INTO trades (id) VALUES ($1)"


@pytest.fixture(autouse=True)
def noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process has to be given time."""
    monkeypatch.setattr(mirror, "NOTICED_AFTER", 0.0)


async def side_of(both: Both, port: str) -> Side:
    return "service" if port == await both.on("service", ASK) else "monolith"


async def answered_by(both: Both, trading: ServicePool) -> Side:
    return await side_of(both, await trading.fetchval(ASK))


def mirror_of(trading: ServicePool) -> mirror.Mirror:
    assert trading.gate.mirror is not None
    return trading.gate.mirror


async def settled(trading: ServicePool) -> None:
    await until(lambda: mirror_of(trading).complete)


async def flag(both: Both, trading: ServicePool, on: bool) -> None:
    route = await store.set_read_from_new(both.control, MIGRATION, SERVICE, on, actor="test")
    await until(lambda: trading.gate.revision_seen >= route.revision)


async def moved(both: Both) -> ServicePool:
    """A pool whose reads have moved."""
    trading = await both.service(None)
    await flag(both, trading, True)
    await settled(trading)
    assert await answered_by(both, trading) == "service"
    return trading


async def test_under_strong_they_follow_the_read_flag_there_and_back_and_see_every_write(strong: Both) -> None:
    trading = await strong.service(None)
    await settled(trading)
    await trading.execute(INSERT, 0)
    assert await answered_by(strong, trading) == "monolith"
    await flag(strong, trading, True)
    for number in range(1, 20):
        await trading.execute(INSERT, number)
        row = await trading.fetchrow(
            f"SELECT id, {ASK.removeprefix('SELECT')} AS port FROM trades WHERE id = $1", number
        )
        assert row is not None, "it sees what was written"
        assert await side_of(strong, row["port"]) == "service"
    async with trading.transaction(readonly=True) as connection:
        assert await side_of(strong, await connection.fetchval(ASK)) == "service"
    async with trading.transaction() as connection:
        assert await side_of(strong, await connection.fetchval(ASK)) == "monolith", "a writing transaction stays whole"
        assert await side_of(strong, await trading.fetchval(ASK)) == "monolith", "and so does a read inside it"
    await flag(strong, trading, False)
    assert await answered_by(strong, trading) == "monolith"
    await strong.switch_to("service", 1)
    await until(lambda: trading.gate.route.epoch == 1)
    assert await answered_by(strong, trading) == "service"
    assert trading.gate.counters.failed == 0


@pytest.mark.parametrize(("planned", "level"), [("strong", "eventual"), ("eventual", "strong"), ("best_effort", None)])
async def test_under_any_other_level_they_move_with_the_writes(
    control: Control, control_db: Database, monolith_db: Database, service_db: Database, planned: str, level: str | None
) -> None:
    chosen = plan(consistency=planned)
    async with open_both(control, control_db, monolith_db, service_db, chosen) as both:
        await both.start()
        trading = await both.service(level)
        await flag(both, trading, True)
        async with both.relay():
            await asyncio.sleep(1.0)  # time to settle, if it were to
        assert await answered_by(both, trading) == "monolith"
        assert await side_of(both, await trading.fetchval(ASK, read="stale_ok")) == "service"
        await both.switch_to("service", 1)
        await until(lambda: trading.gate.route.epoch == 1)
        assert await answered_by(both, trading) == "service"


@pytest.mark.parametrize("how", ["level", "transaction", "session", "two statements"])
async def test_after_a_write_at_a_lower_level_they_stay_at_the_primary_until_it_is_carried(
    strong: Both, how: str
) -> None:
    trading = await moved(strong)
    if how == "level":
        await trading.execute(INSERT, 1, level="eventual")
    elif how == "transaction":
        async with trading.transaction(level="eventual") as connection:
            await add(connection, 1)
    elif how == "session":
        async with trading.acquire() as connection:
            await add(connection, 1)
            # another request's read, while the session may write
            elsewhere = asyncio.create_task(answered_by(strong, trading), context=contextvars.Context())
            assert await elsewhere == "monolith"
    else:
        await trading.execute("SET LOCAL work_mem = '4MB'; INSERT INTO trades (id) VALUES (1)", level="eventual")
    for _ in range(20):
        assert await trading.fetchval("SELECT count(*) FROM trades") == 1
        await asyncio.sleep(0.05)
    assert await strong.ids("service") == [], "no relay runs"
    await strong.drained()
    await settled(trading)
    assert await answered_by(strong, trading) == "service"
    assert await trading.fetchval("SELECT count(*) FROM trades") == 1


async def test_what_was_written_before_the_pool_was_opened_is_waited_for(strong: Both) -> None:
    await strong.on("monolith", "INSERT INTO trades (id) VALUES (1)")
    trading = await strong.service(None)
    await flag(strong, trading, True)
    for _ in range(20):
        assert await trading.fetchval("SELECT count(*) FROM trades") == 1
        await asyncio.sleep(0.05)
    await strong.drained()
    await settled(trading)
    assert await answered_by(strong, trading) == "service"


async def test_a_branch_that_is_left_to_the_janitor_keeps_them_at_the_primary(
    strong: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    trading = await moved(strong)

    async def away(*_: object) -> bool:
        raise ConnectionResetError

    with monkeypatch.context() as patched:
        patched.setattr(two_phase, "end", away)
        await trading.execute(INSERT, 1)
    assert trading.gate.counters.in_doubt == 1
    for _ in range(20):
        assert await trading.fetchval("SELECT count(*) FROM trades") == 1
        await asyncio.sleep(0.05)
    assert await strong.ids("service") == []
    await strong.janitor().resolve(older_than=0)
    await strong.drained()
    await settled(trading)
    assert await answered_by(strong, trading) == "service"


async def test_a_read_that_draws_from_a_sequence_or_locks_rows_does_so_at_the_primary(strong: Both) -> None:
    for side in ("monolith", "service"):
        await strong.on(side, "CREATE SEQUENCE numbers")
    trading = await moved(strong)
    await trading.execute(INSERT, 1)
    assert await trading.fetchval("SELECT nextval('numbers')") == 1
    assert await trading.fetchval("SELECT nextval('numbers')") == 2
    assert await strong.on("service", "SELECT is_called FROM numbers") is False
    locked = await trading.fetchrow(f"SELECT id, {ASK.removeprefix('SELECT')} AS port FROM trades FOR UPDATE")
    assert locked is not None
    assert await side_of(strong, locked["port"]) == "monolith"


async def test_what_runs_inside_a_read_only_block_writes_at_the_primary_and_sees_it(strong: Both) -> None:
    trading = await moved(strong)
    async with trading.acquire(write=False) as connection:
        assert await side_of(strong, await connection.fetchval(ASK)) == "service"
        await trading.execute(INSERT, 1)
        assert await answered_by(strong, trading) == "service"
        await trading.execute(INSERT, 2, level="eventual")
        assert await answered_by(strong, trading) == "monolith"
        assert await trading.fetchval("SELECT count(*) FROM trades") == 2
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with trading.transaction(readonly=True) as connection:
            await connection.execute(INSERT, 3)


async def test_they_are_held_in_a_pause_and_a_pause_waits_for_them(strong: Both) -> None:
    trading = await moved(strong)
    slow = asyncio.create_task(trading.fetchval(f"SELECT pg_sleep(1.0)::text || {ASK.removeprefix('SELECT')}"))
    await until(lambda: bool(trading.gate._running))
    await store.announce_pause(strong.control, MIGRATION, SERVICE, "p1", timedelta(seconds=10))
    await until(lambda: trading.gate.holding)
    assert not slow.done()
    assert trading.gate.acknowledgeable is None
    held = asyncio.create_task(answered_by(strong, trading))
    await until(lambda: trading.gate.counters.held == 1)
    assert await side_of(strong, await slow) == "service"
    assert trading.gate.acknowledgeable == "p1"
    assert not held.done()
    await strong.switch_to("service", 1, "p1")
    assert await held == "service"
    assert trading.gate.route.primary_side == "service"


async def test_without_a_lease_they_go_to_the_primary_and_look_at_its_epoch(
    strong: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    trading = await moved(strong)
    running = asyncio.create_task(trading.fetchval(f"SELECT pg_sleep(0.5)::text || {ASK.removeprefix('SELECT')}"))
    await until(lambda: bool(trading.gate._running))
    lease = trading.gate.lease
    monkeypatch.setattr(lease, "extend", lambda until: None)
    lease.until = 0.0
    assert await side_of(strong, await running) == "monolith", "a read under a lease that ran out is done again"
    assert await answered_by(strong, trading) == "monolith"
    await strong.switch_to("service", 1)
    assert await answered_by(strong, trading) == "service", "the epoch rows say where"


async def test_without_the_stream_they_go_to_the_primary(strong: Both) -> None:
    trading = await moved(strong)
    await OutboxStream(strong.pair, "forward").drop()
    await until(lambda: not mirror_of(trading).complete)
    assert await answered_by(strong, trading) == "monolith"
    await trading.execute(INSERT, 1)
    assert await trading.fetchval("SELECT count(*) FROM trades") == 1


def sides_of(trading: ServicePool) -> TwoSides:
    assert trading._sides is not None
    return trading._sides


async def blind(trading: ServicePool) -> None:
    """The process looks no more by itself."""
    assert trading._outbox is not None
    for task in trading._outbox.tasks:
        if task.get_name() == "cutover-sides":
            task.cancel()
            await asyncio.wait({task})


@pytest.mark.parametrize("how", ["statement", "block", "session"])
async def test_a_read_notices_by_itself_that_its_stream_went_while_another_process_writes_alone(
    strong: Both, how: str
) -> None:
    reader, writer = await moved(strong), await moved(strong)
    engine = routed_engine(reader).execution_options(postgresql_readonly=True)
    async with engine.connect():  # its first connection asks for more
        pass
    await blind(reader)
    await OutboxStream(strong.pair, "forward").drop()
    await sides_of(writer).look()
    await writer.execute(INSERT, 1)
    if how == "session":
        with pytest.raises(Fenced, match="run it again"):
            async with engine.connect() as session:  # and it ends without COMMIT
                assert await session.scalar(text("SELECT count(*) FROM trades")) == 0
        async with engine.connect() as session:
            assert await session.scalar(text("SELECT count(*) FROM trades")) == 1
        return
    if how == "statement":
        assert await reader.fetchval("SELECT count(*) FROM trades") == 1
        return
    count = await reader.run_in_transaction(lambda c: c.fetchval("SELECT count(*) FROM trades"), read_only=True)
    assert count == 1


async def test_a_write_that_was_done_alone_is_answered_once_a_stream_that_came_up_meanwhile_has_carried_it(
    strong: Both,
) -> None:
    stream = OutboxStream(strong.pair, "forward")
    await stream.drop()
    writer = await strong.service(None)
    await flag(strong, writer, True)
    assert writer.level_in_force() == "eventual"
    await blind(writer)
    await stream.start(copy=False)
    reader = await moved(strong)
    asked = sides_of(writer)._asked
    asked.update(dict.fromkeys(asked, time.monotonic()))

    async def slowly(connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]") -> None:
        await connection.execute(INSERT, 1)
        asked.clear()  # what it knew when it began is old

    writing = asyncio.create_task(writer.run_in_transaction(slowly, table="trades"))
    with suppress(TimeoutError):
        await until(lambda: writer.level_in_force() == "strong" or writing.done())
    assert writer.level_in_force() == "strong", "it does not hear of the new stream before it answers"
    assert await reader.fetchval("SELECT count(*) FROM trades") == 0
    assert not writing.done()
    await strong.drained()
    await writing
    assert await reader.fetchval("SELECT count(*) FROM trades") == 1


async def test_a_write_of_one_who_has_just_looked_waits_for_nobody(strong: Both) -> None:
    await OutboxStream(strong.pair, "forward").drop()
    writer = await strong.service(None)
    await flag(strong, writer, True)
    await blind(writer)
    await sides_of(writer).look()
    asked = dict(sides_of(writer)._asked)
    await writer.execute(INSERT, 1)
    assert sides_of(writer)._asked == asked


async def test_they_stay_at_the_primary_until_the_gap_of_a_stream_built_anew_is_closed(strong: Both) -> None:
    trading = await moved(strong)
    stream = OutboxStream(strong.pair, "forward")
    await stream.drop()
    await strong.on("monolith", "INSERT INTO trades (id) VALUES (1)")  # which no stream will carry
    await stream.start(copy=False, gap=True)
    await sides_of(trading).look()
    assert trading.level_in_force() == "strong"
    for _ in range(20):
        assert await trading.fetchval("SELECT count(*) FROM trades") == 1
        await asyncio.sleep(0.05)
    await strong.put_behind_the_fence("INSERT INTO trades (id) VALUES (1)")
    await stream.close_gap()
    await settled(trading)
    assert await answered_by(strong, trading) == "service"


async def test_a_rebuild_that_was_overtaken_closes_no_gap_and_a_start_that_slept_neither(strong: Both) -> None:
    first, second = OutboxStream(strong.pair, "forward"), OutboxStream(strong.pair, "forward")
    await first.drop()
    await first.start(copy=False, gap=True)
    await second.drop()
    await OutboxStream(strong.pair, "forward").start(copy=False)  # of a switch that slept
    await second.start(copy=False, gap=True)
    with pytest.raises(StaleAttempt, match="has made the forward stream anew"):
        await first.close_gap()
    whole = "SELECT whole FROM cutover.outbox_stream WHERE direction = 'forward'"
    assert await strong.on("service", whole) is False
    await second.close_gap()
    assert await strong.on("service", whole) is True


async def test_with_reads_that_have_moved_a_write_that_may_not_be_alone_any_more_is_refused_while_nobody_can_tell(
    strong: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    await OutboxStream(strong.pair, "forward").drop()
    writer = await strong.service(None, patience=0.5)
    await strong.on("monolith", "SELECT 1")
    await blind(writer)
    sides = sides_of(writer)
    await OutboxStream(strong.pair, "forward").prepare()  # what a strong write leaves at its primary
    await sides.look()
    assert writer.level_in_force() == "eventual"

    async def away(_: Side) -> None:
        """As for a server that cannot be reached."""

    monkeypatch.setattr(sides, "_see", away)
    sides._asked.clear()
    await writer.execute(INSERT, 1)
    await flag(strong, writer, True)
    with pytest.raises(SecondaryAway, match="could not be found out"):
        await writer.execute(INSERT, 2)
    assert await strong.ids("monolith") == [1]
