"""Switchover runs, brought into each of their states: forwards, back, and where a person or a database is needed."""

from datetime import timedelta

from temporalio.exceptions import ApplicationError

from activities import ids
from activities import models as m
from tests.replay.recorder import HOUR, SERVICE, Recorder
from tests.replay.scenarios import outage, task
from tests.workflows.harness import Harness
from tests.workflows.world import refused, unreachable
from workflows.failures import APPROVAL_LAPSED
from workflows.switchover import SwitchoverWorkflow

MINUTE = timedelta(minutes=1)


async def begun(h: Harness) -> str:
    run = ids.switchover(h.plan, SERVICE)
    await h.start(SwitchoverWorkflow, run, service=SERVICE)
    return run


async def reads(recorder: Recorder) -> None:
    """The read gate, the read switch, the soak."""
    async with recorder.harness("replicating") as h:
        await recorder.keep(h, await begun(h), "switchover-refused")
    async with recorder.harness("ready", soak=2 * MINUTE, soak_samples=10) as h:
        h.world.down["position"] = unreachable()
        h.world.tasks.append(task("switchover", SERVICE))
        h.world.problems["read"] = ["trades: 0.3 % of the rows differ"]
        h.world.faults["set_read_flag"] = [refused("the route is missing")]
        run = await begun(h)
        await outage(recorder, h, run, "position", "switchover-unreachable")
        await recorder.keep(h, run, "switchover-tasks")
        await h.update(run, "approve", by="ann")
        await recorder.keep(h, run, "switchover-read-gate-closed")
        h.world.problems.clear()
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "switchover-read-gate")
        await h.update(run, "reject", by="ben", reason="not on a holiday")
        await recorder.keep(h, run, "switchover-read-gate-rejected")
        await h.update(run, "retry", by="ben")
        await h.at_gate(run, "read")
        await h.update(run, "pause", by="erin")
        await h.update(run, "approve", by="ann")
        await recorder.keep(h, run, "switchover-paused")
        await h.update(run, "resume", by="erin")
        await recorder.keep(h, run, "switchover-parked")
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "switchover-soak")
        h.world.breached = ["write_latency"]
        await h.advance(run, MINUTE)
        await recorder.keep(h, run, "switchover-soak-breached")
    async with recorder.harness("ready") as h:
        unsure = m.Readings(readings=[m.Reading(name="write_latency", waiting=True)])
        h.world.sample_thresholds = lambda request: unsure  # type: ignore[method-assign]
        run = await begun(h)
        await h.approve(run, "read", "ann")
        await recorder.keep(h, run, "switchover-soak-waits-for-samples")
    async with recorder.harness("ready", hasty=True, soak=HOUR, soak_samples=60) as h:
        run = ids.switchover(h.plan, SERVICE)
        first = await h.start(SwitchoverWorkflow, run, service=SERVICE)
        await h.approve(run, "read", "ann")
        await h.until(run, lambda one: one.phase == "soak")
        await h.advance(run, 10 * MINUTE)
        await recorder.keep(h, run, "switchover-soak-continued", first.result_run_id)
        await recorder.keep(h, run, "switchover-soak-resumed")
    async with recorder.harness("ready", soak=2 * MINUTE, soak_samples=10) as h:
        run = await begun(h)
        await h.approve(run, "read", "ann")
        await h.until(run, lambda one: one.phase == "soak")
        await h.handle(run).cancel()
        await recorder.keep(h, run, "switchover-cancelled")


async def at_write_gate(h: Harness) -> str:
    run = await begun(h)
    await h.approve(run, "read", "ann")
    return run


async def switched(h: Harness) -> str:
    run = await at_write_gate(h)
    await h.approve(run, "write", "ann", "ben")
    await h.until(run, lambda one: one.phase == "deprecation" and one.state == "WAITING")
    return run


async def writes(recorder: Recorder) -> None:
    """The write gate and the write switch, and what holds them up."""
    async with recorder.harness("ready") as h:
        h.world.problems["write"] = ["trades: 1 confirmed difference"]
        run = await at_write_gate(h)
        await recorder.keep(h, run, "switchover-write-gate-closed")
        h.world.problems.clear()
        await h.update(run, "retry", by="ann")
        await h.approve(run, "write", "ann")
        await recorder.keep(h, run, "switchover-write-gate-one-approval")
        await h.advance(run, 25 * HOUR)
        await h.until(run, lambda one: bool(one.gates) and "ann expired" in one.gates[0].note)
        await recorder.keep(h, run, "switchover-approvals-expired")
        h.world.worse["write"] = "differences 0 → 3"
        await h.approve(run, "write", "ann", "ben")
        await h.until(run, lambda one: bool(one.gates) and "void" in one.gates[0].note)
        await recorder.keep(h, run, "switchover-approvals-void")
        h.world.faults["fenced_section"] = [ApplicationError("too old", type=APPROVAL_LAPSED, non_retryable=True)]
        await h.approve(run, "write", "ann", "ben")
        await h.until(run, lambda one: "not begun" in str(one.progress.get("last write switch")))
        await recorder.keep(h, run, "switchover-approval-lapsed")
        h.world.undone = ["a lock was not obtained"] * 4
        await h.approve(run, "write", "ann", "ben")
        await recorder.keep(h, run, "switchover-undone")
        await h.advance(run, 3 * MINUTE)
        await recorder.keep(h, run, "switchover-write-switch-parked")
        h.world.down["prepare_reverse"] = unreachable("database 'trading_engine_db' cannot be reached: ConnectionError")
        await h.update(run, "retry", by="ann")
        await outage(recorder, h, run, "prepare_reverse", "switchover-section-unreachable")
        await recorder.keep(h, run, "switchover-deprecation")
    async with recorder.harness("ready") as h:
        run = await at_write_gate(h)
        h.world.break_in_the_middle("the journal does not know the epoch: a person has to look")
        await h.approve(run, "write", "ann", "ben")
        await recorder.keep(h, run, "switchover-half-done")


async def back(recorder: Recorder) -> None:
    """The way back with all that can hold it up, and a second switchover to the end."""
    async with recorder.harness("ready") as h:
        run = await switched(h)
        h.world.down["position"] = unreachable()
        h.world.faults["restore_keys"] = [refused("a key would not validate")]
        await h.update(run, "rollback", by="dora", reason="orders look odd")
        await outage(recorder, h, run, "position", "switchover-rollback-unreachable")
        await recorder.keep(h, run, "switchover-rollback-parked")
        await h.update(run, "retry", by="dora")
        await recorder.keep(h, run, "switchover-rolled-back")
        await h.approve(run, "switch-again", "ann")
        await h.approve(run, "read", "ann")
        await h.approve(run, "write", "ann", "ben")
        await h.until(run, lambda one: one.phase == "deprecation" and one.state == "WAITING")
        await h.advance(run, 3 * HOUR)
        await recorder.keep(h, run, "switchover-hand-over")
        await h.signal(run, "hand_over", by="ann")
        await recorder.keep(h, run, "switchover-done")


async def later_runs(recorder: Recorder) -> None:
    """Runs that go on where another one of the same service has ended."""
    async with recorder.harness("ready") as h:
        h.world.primary[SERVICE] = "service"
        run = await begun(h)
        await recorder.keep(h, run, "switchover-found-switched")
        h.world.breached = ["servers"]
        await h.advance(run, 2 * HOUR)
        await recorder.keep(h, run, "switchover-failover")
    for stage, name, length in (("switched", "deprecation", 24 * HOUR), ("deprecated", "hand-over", None)):
        async with recorder.harness(stage, hasty=True, deprecation=length or 2 * HOUR) as h:
            h.world.primary[SERVICE] = "service"
            run = ids.switchover(h.plan, SERVICE)
            first = await h.start(SwitchoverWorkflow, run, service=SERVICE)
            await h.until(run, lambda one: one.state == "WAITING")
            await h.advance(run, 8 * HOUR)
            await recorder.keep(h, run, f"switchover-{name}-continued", first.result_run_id)
            await recorder.keep(h, run, f"switchover-{name}-resumed")
