"""`start`, the messages and `history`: what they do, what they say, and how they end."""

import json
import uuid
from datetime import timedelta

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities import ids
from cutover.cli import waiting
from cutover.control import audit
from cutover.control.audit import Entry
from tests.cli.conftest import SERVICE, Desk
from tests.workflows.harness import runner
from workers.registry import WORKFLOWS
from workflows.cleanup import CleanupWorkflow
from workflows.switchover import SwitchoverWorkflow

GATE = "give-up-way-back"
AWAY = "postgresql://u:hunter2@127.0.0.1:1/none"


async def at_gate(desk: Desk) -> str:
    """A cleanup run that waits for approvals."""
    desk.harness.world.stages_of.update({SERVICE: "deprecated", "analytics": "deprecated"})
    run = ids.cleanup(desk.plan)
    await desk.harness.start(CleanupWorkflow, run)
    await desk.harness.at_gate(run, GATE)
    return run


async def test_start_starts_once_and_says_where_to_look(desk: Desk) -> None:
    started = await desk.type("start", "migration", desk.plan, env={"CUTOVER_TEMPORAL_UI": "http://127.0.0.1:8233"})
    assert f"started migration/{desk.plan}" in started.output
    assert f"cutover status {desk.plan} --watch" in started.output
    assert f"http://127.0.0.1:8233/namespaces/default/workflows/migration/{desk.plan}" in started.output
    again = await desk.type("start", "migration", desk.plan, status=1)
    assert "runs already" in again.output
    phase = await desk.type("start", "switchover", desk.plan, SERVICE, "--json")
    assert json.loads(phase.stdout)["workflow_id"] == ids.switchover(desk.plan, SERVICE)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("migration", "nosuch"), 1, "nosuch is not registered: `cutover plan register FILE`"),
        (("switchover", "PLAN", "nosuch"), 2, "nosuch"),
        (("switchover", "PLAN"), 2, "switchover needs a service"),
        (("migration", "PLAN", SERVICE), 2, "migration takes no service"),
        (("everything", "PLAN"), 2, "everything"),
    ],
)
async def test_a_wrong_start_is_refused_before_anything_runs(
    desk: Desk, arguments: tuple[str, ...], status: int, words: str
) -> None:
    given = [desk.plan if one == "PLAN" else one for one in arguments]
    refused = await desk.type("start", *given, status=status)
    assert words in " ".join(refused.output.split())
    with pytest.raises(RPCError):
        await desk.harness.handle("migration/nosuch").describe()


async def test_start_waits_for_no_control_database(desk: Desk) -> None:
    started = await desk.type("start", "migration", desk.plan, env={"CUTOVER_DSN_CONTROL": AWAY})
    assert "not checked in the control database" in started.stderr
    assert "started" in started.stdout


async def test_every_message_is_answered_and_a_refused_one_ends_in_status_1(desk: Desk) -> None:
    run = await at_gate(desk)
    assert "pauses" in (await desk.type("pause", run, "--by", "alice")).output
    assert "goes on" in (await desk.type("resume", run, "--by", "alice", "--json")).output
    wrong = await desk.type("approve", run, "--by", "alice", "--evidence", "zzzz", status=1)
    assert 'the right one is "k7gi"' in wrong.output
    approved = await desk.type("approve", run, "--by", "alice", "--evidence", "k7gi", "--gate", GATE, "--json")
    assert json.loads(approved.stdout) == {
        "workflow_id": run,
        "action": "approve",
        "answer": f"approved as alice; gate '{GATE}': 1 of 2",
    }
    assert ids.switchover(desk.plan, SERVICE) in (await desk.type("rollback", run, "--by", "alice", status=1)).output
    assert "no step has failed" in (await desk.type("retry", run, "--by", "alice", status=1)).output
    assert "cannot be skipped" in (await desk.type("skip", run, "--by", "alice", status=1)).output
    rejected = await desk.type("reject", run, "--by", "bob", "--reason", "not this week")
    assert "rejected as bob" in rejected.output
    await desk.harness.parked(run)
    assert "retry" in (await desk.type("retry", run, "--by", "bob")).output
    await desk.harness.at_gate(run, GATE)
    assert [one.action for one in desk.harness.world.decisions] == ["pause", "resume", "approve", "reject", "retry"]


async def test_rollback_rolls_back(desk: Desk) -> None:
    desk.harness.world.stages_of[SERVICE] = "ready"
    run = ids.switchover(desk.plan, SERVICE)
    await desk.harness.start(SwitchoverWorkflow, run, service=SERVICE)
    await desk.harness.approve(run, "read", "alice")
    await desk.harness.until(run, lambda one: one.phase == "soak")
    answered = await desk.type("rollback", run, "--by", "carol", "--reason", "errors")
    assert "rolls back" in answered.output
    await desk.harness.until(run, lambda one: one.state in ("ROLLED_BACK", "WAITING") and one.phase == "rolled back")
    assert [one.kind for one in desk.harness.world.alerts] == ["rollback"]


async def test_a_run_that_is_not_there_or_has_ended_is_said_so(desk: Desk) -> None:
    assert "no such run" in (await desk.type("approve", "migration/nosuch", "--by", "alice", status=1)).output
    run = await at_gate(desk)
    await desk.harness.handle(run).terminate()
    assert f"{run} is terminated" in (await desk.type("approve", run, "--by", "alice", status=1)).output


async def test_without_a_worker_a_message_is_not_sent_and_the_signal_is_shown(desk: Desk) -> None:
    queue = f"nobody-{uuid.uuid4()}"
    handle = await desk.harness.client.start_workflow(
        CleanupWorkflow.run, {"plan": desk.plan}, id=f"nobody-{desk.plan}", task_queue=queue
    )
    try:
        refused = await desk.type("approve", handle.id, "--by", "alice", "--evidence", "k7gi", status=3)
        assert f"no worker polls task queue '{queue}'" in refused.output
        assert "nothing was sent" in refused.output
        assert (
            f"temporal workflow signal --workflow-id {handle.id} --name approve "
            """--input '{"by": "alice", "evidence": "k7gi"}'""" in refused.output
        )
    finally:
        await handle.terminate()


async def test_a_worker_that_has_just_died_costs_a_limited_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "ANSWER", 1.5)
    queue = f"dead-{uuid.uuid4()}"
    client = desk.harness.client
    async with Worker(client, task_queue=queue, workflows=WORKFLOWS, workflow_runner=runner()):
        for _ in range(100):
            if await waiting.polled(client, queue):
                break
    handle = await client.start_workflow(CleanupWorkflow.run, {"plan": "x"}, id=f"dead-{desk.plan}", task_queue=queue)
    try:
        refused = await desk.type("rollback", handle.id, "--by", "alice", status=3)
        assert "waiting for" in refused.stderr or "no worker polls" in refused.stderr
        assert "cutover worker" in refused.stderr
    finally:
        await handle.terminate()


async def test_history_prints_the_newest_last_after_checking_the_chain(desk: Desk) -> None:
    async with desk.control.transaction() as connection:
        for number in range(3):
            await audit.append(connection, Entry("alice", f"step.{number}", desk.plan, SERVICE, {"n": number}))
    lines = (await desk.type("history", desk.plan, "--limit", "2")).stdout.splitlines()
    assert ["step.1" in lines[0], "step.2" in lines[1], "the hash chain is whole" in lines[2]] == [True] * 3
    entries = json.loads((await desk.type("history", desk.plan, "--json")).stdout)["entries"]
    assert [one["action"] for one in entries][-3:] == ["step.0", "step.1", "step.2"]
    async with desk.control.connection() as connection:
        await connection.execute("ALTER TABLE control.audit DISABLE TRIGGER ALL")
        await connection.execute("UPDATE control.audit SET actor = 'mallory' WHERE action = 'step.1'")
    broken = await desk.type("history", desk.plan, status=1)
    assert "was changed" in broken.stderr


async def test_a_message_of_the_run_is_what_a_person_reads(desk: Desk) -> None:
    """The command's answer is the update's own: nothing is wrapped around it."""
    run = await at_gate(desk)
    await desk.harness.advance(run, timedelta(minutes=1))
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await desk.harness.update(run, "approve", by="alice")
    shown = await desk.type("approve", run, "--by", "alice", status=1)
    assert shown.stderr == f"error: {refused.value.cause}\n"
