"""A stream whose slot was lost is rebuilt without losing what it never carried."""

from cutover.control import reports
from cutover.streams.logical import LogicalStream
from cutover.switch import finish, rebuild, reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import order
from tests.waiting import until


async def test_a_lost_reverse_slot_is_rebuilt_and_every_missed_row_comes_over(env: SwitchEnvironment) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    assert (await section.run(env, request, lambda _: None)).result == "done"
    await finish.finish(env, request)
    stream = env.stream("reverse")
    assert isinstance(stream, LogicalStream)
    await stream.stop()

    async def gone() -> bool:
        async with env.pair.target.session() as connection:
            active = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active"
            return not await connection.fetchval(active, stream.subscription)

    await until(gone, "the walsender has ended")
    async with env.pair.target.session() as connection:
        await connection.execute("SELECT pg_drop_replication_slot($1)", stream.subscription)
        await connection.execute("INSERT INTO trades (price, note) SELECT i, 'missed' FROM generate_series(1, 50) i")
        await connection.execute("UPDATE trades SET note = 'changed' WHERE id = 5")
        await connection.execute("DELETE FROM trades WHERE id = 9")
    assert (await stream.health()).lost
    said: list[str] = []
    for report in await rebuild.rebuild(env, said.append):
        assert report.differences == 0
    query = "SELECT (SELECT jsonb_agg(t ORDER BY id) FROM trades t)::text"
    async with env.pair.monolith.session() as one, env.pair.target.session() as two:
        assert await one.fetchval(query) == await two.fetchval(query)
    assert (await stream.health()).ok
    assert any("52 rows mended" in line for line in said), said
    assert await reports.open_differences(env.control, "test", env.pair.service) == []


async def test_rebuilding_a_stream_that_is_whole_changes_no_row(env: SwitchEnvironment) -> None:
    said: list[str] = []
    assert all(report.differences == 0 for report in await rebuild.rebuild(env, said.append))
    assert not any("mended" in line for line in said)
