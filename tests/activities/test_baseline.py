"""The baseline is what clients saw before the stream was started, whatever happens to the run."""

import asyncio
from datetime import timedelta

from cutover.monitor import baseline
from cutover.monitor.statistics import Collector
from tests.activities.conftest import Ground


async def clients_measure(ground: Ground, service: str, seconds: float, *, times: int = 30) -> None:
    """So many writes of that length, reported as RoutedPool does."""
    collector = Collector(ground.plan.migration, "test")
    for _ in range(times):
        collector.record(service, "monolith", "trades", "write", seconds)
    await collector.flush(ground.control)


async def recorded(ground: Ground, service: str) -> float | None:
    found = await baseline.load(ground.control, ground.plan.migration, service)
    return found["trades", "write"].p95


async def test_a_run_that_begins_again_during_the_first_copy_keeps_the_baseline(ground: Ground) -> None:
    service = ground.services[0]
    await ground.prepare()
    await clients_measure(ground, service, 0.002)
    await ground.do(ground.replication.record_baseline, ground.ref(service))
    before = await recorded(ground, service)
    await ground.control.execute("DELETE FROM control.client_stat")
    await clients_measure(ground, service, 0.5)
    # nothing has been started yet: a second look is as good as the first
    await ground.do(ground.replication.record_baseline, ground.ref(service))
    assert await recorded(ground, service) != before
    await ground.control.execute("DELETE FROM control.client_stat")
    await baseline.record(ground.control, ground.plan.migration, service, timedelta(minutes=1))
    calm = await recorded(ground, service)
    await ground.do(ground.replication.start_stream, ground.ref(service))
    await clients_measure(ground, service, 3.0)
    await ground.do(ground.replication.record_baseline, ground.ref(service))
    assert await recorded(ground, service) == calm


async def test_operations_that_are_seldom_are_waited_for_until_they_can_be_compared_with(ground: Ground) -> None:
    service = ground.services[0]
    await ground.prepare()
    await clients_measure(ground, service, 0.002, times=5)
    taking = asyncio.create_task(ground.do(ground.replication.record_baseline, ground.ref(service)))
    await asyncio.sleep(0)
    assert await baseline.too_few(ground.control, ground.plan.migration, service, timedelta(minutes=1)) == ["write"]
    await clients_measure(ground, service, 0.002)
    await asyncio.wait_for(taking, 20)
    found = await baseline.load(ground.control, ground.plan.migration, service)
    assert found["trades", "write"].attempts >= baseline.MINIMUM_OPERATIONS
