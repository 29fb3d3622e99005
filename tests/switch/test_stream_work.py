"""Failures of the stream beside its attempts, counted once whoever looks: two workers, a restart, a reset."""

from datetime import timedelta

import pytest

from activities import models as m
from activities.context import Context
from activities.monitoring import MonitoringActivities
from cutover.control.database import Control
from cutover.monitor.samples import StreamFacts
from cutover.monitor.work import stream_facts
from cutover.postgres.applier import applier_session
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import Work
from tests.waiting import until

NAME = "secondary_failure_rate"


async def reading(context: Context, ref: m.Ref) -> m.Reading:
    """What a worker that has just been started reads."""
    sample = await Work(context, ref).run(MonitoringActivities(context).sample, m.SampleRequest(ref=ref))
    (found,) = [one for one in sample.readings if one.name == NAME]
    return m.Reading.model_validate(found)


async def facts(env: SwitchEnvironment, seconds: float) -> StreamFacts:
    stream = env.stream("forward")
    return await stream_facts(env.control, env.pair, "forward", stream, timedelta(seconds=seconds))


async def fail_once_or_more(env: SwitchEnvironment) -> int:
    """A row that is there already makes apply fail until it is taken away; how often it failed."""
    stream = env.stream("forward")
    async with applier_session(env.pair.target, env.pair.service, "test") as sink:
        await sink.execute("INSERT INTO trades (id, price) VALUES (9000, 1)")
    async with env.pair.monolith.session() as source:
        await source.execute("INSERT INTO trades (id, price) VALUES (9000, 1)")

    async def failed() -> bool:
        return (await stream.health()).apply_errors > 0

    await until(failed, "apply has failed")
    async with applier_session(env.pair.target, env.pair.service, "test") as sink:
        await sink.execute("DELETE FROM trades WHERE id = 9000")
    await stream.await_marker(await stream.put_marker(), 30)
    return (await stream.health()).apply_errors


async def write(env: SwitchEnvironment, rows: int) -> None:
    """Rows through the stream, until the sink has counted them."""
    before = await env.stream("forward").work()
    assert before is not None
    async with env.pair.monolith.session() as source:
        await source.execute("INSERT INTO trades (price) SELECT i FROM generate_series(1, $1::int) i", rows)

    async def counted() -> bool:
        now = await env.stream("forward").work()
        return now is not None and now.applied >= before.applied + rows

    await until(counted, "the sink has counted the rows")


async def test_every_worker_sees_each_failure_once_and_a_real_rate(env: SwitchEnvironment, work: Work) -> None:
    elsewhere = await Control.open(env.control.database)
    try:
        here, there = work.context, Context(work.context.settings, elsewhere)
        assert (await reading(here, work.ref)).waiting, "the first look has no window"
        quiet = await reading(there, work.ref)
        assert (quiet.value, quiet.breached, quiet.waiting) == (0.0, False, False)
        failures = await fail_once_or_more(env)
        await write(env, 50)
        for context in (there, here, there, here):
            found = await reading(context, work.ref)
            assert found.detail.startswith(f"{failures} of "), found.detail
            assert found.value is not None
            assert failures / 200 < found.value < failures / 50
            assert found.breached == (found.value > 0.01)
        await write(env, 1000)
        found = await reading(there, work.ref)
        assert found.value is not None
        assert 0 < found.value < failures / 1000
    finally:
        await elsewhere.close()


async def test_failures_leave_the_window_with_time(env: SwitchEnvironment, work: Work) -> None:
    assert (await facts(env, 60)).first
    failures = await fail_once_or_more(env)
    assert (await facts(env, 60)).failures == failures
    assert (await facts(env, 60)).failures == failures

    async def over() -> bool:
        return (await facts(env, 0.2)).failures == 0

    await until(over, "the failures are older than the window")
    assert (await facts(env, 60)).failures == failures


@pytest.mark.parametrize("noted", [True, False])
async def test_counters_that_began_anew_hold_the_gate_and_do_not_hide_or_invent_failures(
    env: SwitchEnvironment, work: Work, noted: bool
) -> None:
    await reading(work.context, work.ref)
    await fail_once_or_more(env)
    assert (await reading(work.context, work.ref)).value
    if noted:
        async with env.pair.target.session() as sink:
            await sink.execute("SELECT pg_stat_reset_subscription_stats(oid) FROM pg_subscription")
    else:  # as after a crash of the server: lower counts, and no word of it
        await env.control.execute("UPDATE control.stream_count SET failures = failures + 5")
    found = await reading(work.context, work.ref)
    assert found.breached
    assert found.value is None
    assert "began anew" in found.detail
    assert (await reading(work.context, work.ref)).breached, "another look does not make it known"
    await env.control.execute("UPDATE control.stream_count SET read_at = read_at - interval '70 seconds'")
    after = await reading(work.context, work.ref)
    assert (after.value, after.breached) == (0.0, False)


async def test_a_stream_that_does_not_run_or_is_gone_is_breached(env: SwitchEnvironment, work: Work) -> None:
    await reading(work.context, work.ref)
    stream = env.stream("forward")
    await stream.stop()
    assert "disabled" in (await reading(work.context, work.ref)).detail
    await stream.drop()
    found = await reading(work.context, work.ref)
    assert found.breached
    assert found.value is None
