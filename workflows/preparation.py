"""Phase 1: preflight, tables claimed, schemas, roles, fences, fingerprints, checklist, gate `prepared`."""

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from activities.models import ChecklistRequest, GateEvidence, Ref, TaskDone, TaskQuery
    from workflows.failures import StartOver, StepFailed
    from workflows.gates import TASK_PREFIX, Gate, OpenGate
    from workflows.messages import Start
    from workflows.run import Run

#: Done for each service, in this order; all can be run again.
SERVICE_STEPS = (
    ("schema of {}", s.CREATE_SCHEMA),
    ("comparing the schemas of {}", s.COMPARE_SCHEMAS),
    ("roles of {}", s.CREATE_ROLES),
    ("fences of {}", s.INSTALL_FENCES),
    ("capture of the loose keys of {}", s.CAPTURE_LOOSE_KEYS),
    ("catalog fingerprints of {}", s.TAKE_FINGERPRINTS),
)


@workflow.defn(name="PreparationWorkflow")
class PreparationWorkflow(Run[Start]):
    """`{"plan": "ai-trader"}` after `cutover plan register FILE`."""

    title = "Preparation"

    @workflow.init
    def __init__(self, start: Any = None) -> None:
        super().__init__(start, Start)

    @workflow.run
    async def run(self, start: Any = None) -> str:
        await self.begin()
        while True:
            try:
                return await self._prepare()
            except StartOver:
                # all its steps can be run again, and services that have not begun may have other tables now
                self.say("the preparation to start over, by the adopted plan", state="RUNNING")

    async def after_adoption(self) -> None:
        raise StartOver

    async def _prepare(self) -> str:
        self.say("preflight to finish", phase="preflight")
        await self.step("preflight", self._preflight)
        await self.do("claiming the tables", s.CLAIM_TABLES, self.ref)
        for service in self.rules.services:
            self.say(f"{service.name} to be prepared", phase=f"preparing {service.name}")
            ref = self.ref.model_copy(update={"service": service.name})
            for text, signature in SERVICE_STEPS:
                await self.do(text.format(service.name), signature, ref)
        self.say("the checklist to be looked through", phase="checklist")
        await self.step("automatic checklist", lambda: automatic_items(self, "preparation", self.ref))
        await open_tasks(self, "preparation", self.ref)
        await self.gate(
            Gate("prepared", "Everything is prepared; start copying and writing to both sides?", 1, s.MEASURE_PREPARED)
        )
        await self.set_stage("prepared")
        await self.end("nothing: prepared")
        return "prepared"

    async def _preflight(self) -> None:
        result = await self.call(s.PREFLIGHT, self.ref)
        self.progress["preflight: blocking findings"] = result.blocking
        self.progress["preflight: advice"] = result.advice
        if result.blocking:
            listed = "; ".join(result.findings)
            raise StepFailed(
                "Refused", f"{result.blocking} blocking findings (see `cutover preflight FILE`): {listed}"[:500]
            )


async def automatic_items(run: Run[Any], phase: str, ref: Ref) -> None:
    """Have the phase's automatic items checked; StepFailed names those that do not hold, and why."""
    checklist = await run.call(s.CHECKLIST, ChecklistRequest(ref=ref, phase=phase))
    for item in checklist.items:
        run.progress.pop(f"{'✗' if item.ok else '✓'} {item.text}", None)
        run.progress[f"{'✓' if item.ok else '✗'} {item.text}"] = item.evidence
    failed = [f"{item.text} ({item.evidence})" for item in checklist.items if not item.ok]
    if failed:
        raise StepFailed("Refused", f"checklist items do not hold: {'; '.join(failed)}"[:500])


async def open_tasks(run: Run[Any], phase: str, ref: Ref, service: str | None = None) -> None:
    """Wait until people have acknowledged their tasks: each by gate `task:<key>`, or all by gate `tasks`."""
    ref = ref.model_copy(update={"service": service})
    while not await _tasks_done(run, phase, ref):
        pass


async def _tasks_done(run: Run[Any], phase: str, ref: Ref) -> bool:
    """One list of tasks to its end; False where another plan was taken over, which may have other tasks."""
    found = await run.do(f"reading the open tasks of {phase}", s.OPEN_TASKS, TaskQuery(ref=ref, phase=phase))
    under = run.plan_hash
    pending: dict[str, OpenGate] = {}
    for task in found.tasks:
        length = f", {task.duration}" if task.duration else ""
        question = f"{task.description or task.key} ({task.owner}{length})"
        opened = OpenGate(Gate(TASK_PREFIX + task.key, question), workflow.now(), GateEvidence(code=""))
        pending[task.key] = opened
        run.gates[opened.gate.name] = opened
    try:
        while pending:
            await run.may_proceed()
            if run.plan_hash != under:
                return False
            names = ", ".join(f"{key} ({run.gates[TASK_PREFIX + key].gate.question})" for key in pending)
            run.say(
                f"{len(pending)} task(s) of people, each by approving gate 'task:NAME', all by gate 'tasks': {names}",
                state="WAITING",
            )
            await run.wait(
                lambda: run.plan_hash != under or any(one.enough or one.rejected for one in pending.values())
            )
            for key, opened in list(pending.items()):
                if opened.rejected is not None:
                    rejection, opened.rejected = opened.rejected, None
                    await run.park(f"task {key!r}", f"rejected by {rejection.by}: {rejection.reason}")
                elif opened.enough:
                    approval = next(iter(opened.approvals.values()))
                    done = TaskDone(ref=ref, task=key, by=approval.by, reason=approval.reason)
                    await run.do(f"recording task {key!r}", s.COMPLETE_TASK, done)
                    run.progress[f"✓ {opened.gate.question}"] = approval.by
                    del run.gates[opened.gate.name], pending[key]
    finally:
        for key in pending:
            run.gates.pop(TASK_PREFIX + key, None)
    return run.plan_hash == under
