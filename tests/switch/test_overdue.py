"""Cases that nobody decides in time: escalated by what runs periodically, once, and the switch stays closed."""

from datetime import timedelta

from activities import models as m
from activities.monitoring import MonitoringActivities
from activities.reconciliation import ReconciliationActivities
from cutover.alerts.cases import escalate
from cutover.alerts.store import recent
from cutover.control import conflicts
from cutover.switch import gates
from cutover.switch.environment import SwitchEnvironment
from tests.passing import make_pass
from tests.switch.conftest import Work


async def overdue_case(env: SwitchEnvironment, key: int) -> int:
    return await conflicts.open_case(
        env.control, migration="test", service=env.pair.service, table="trades", key_json=f'["{key}"]',
        kind="mismatched", rule="manual", decide_within=timedelta(microseconds=1),
    )  # fmt: skip


async def test_a_sample_escalates_a_case_past_its_deadline_and_the_write_gate_stays_closed(
    env: SwitchEnvironment, work: Work
) -> None:
    sample = MonitoringActivities(work.context).sample
    await conflicts.open_case(
        env.control, migration="test", service=env.pair.service, table="trades", key_json='["1"]', kind="mismatched",
        rule="manual",
    )  # fmt: skip
    await work.run(sample, m.SampleRequest(ref=work.ref))
    assert await work.alerts("conflict-overdue") == []
    number = await overdue_case(env, 2)
    for _ in range(2):
        await work.run(sample, m.SampleRequest(ref=work.ref))
    (alert,) = await work.alerts("conflict-overdue")
    assert alert.severity == "critical"
    assert f"trades: 1 rows that differ were not decided in time (case {number} since" in alert.text
    assert f"cutover conflicts list test --service {env.pair.service}" in alert.text
    assert any("cutover conflicts list" in problem for problem in (await gates.measure(env, "service")).problems)


async def test_another_case_that_becomes_overdue_alerts_anew_and_a_decided_one_does_not(env: SwitchEnvironment) -> None:
    first = await overdue_case(env, 1)
    assert await escalate(env.control, "test", env.pair.service) == 1
    assert await escalate(env.control, "test", env.pair.service) == 1
    await overdue_case(env, 2)
    assert await escalate(env.control, "test") == 2
    told = [row for row in await recent(env.control, "test") if row.alert.kind == "conflict-overdue"]
    assert sorted(row.count for row in told) == [1, 2]
    await conflicts.decide(env.control, "test", first, "alice", "mended")
    assert await escalate(env.control, "test") == 1
    assert await escalate(env.control, "other") == 0


async def test_every_pass_escalates_what_is_overdue(env: SwitchEnvironment, work: Work) -> None:
    await work.run(MonitoringActivities(work.context).sample, m.SampleRequest(ref=work.ref))
    await overdue_case(env, 2)
    # both sides agree about that key, so a pass that came after the case closes it; one that still differs stays
    await env.control.execute("UPDATE control.conflict SET last_at = clock_timestamp() + interval '1 hour'")
    await make_pass(work.run, ReconciliationActivities(work.context), work.ref, "trades")
    (alert,) = await work.alerts("conflict-overdue")
    assert alert.severity == "critical"
