"""The programme: preparation, dual-write, the switchovers on their days, cleanup.

It starts the other runs and waits for the stages they leave in the control database; they wake it
by a signal, and a slow poll finds what a lost signal would have told. It continues as new at phase
ends. Children are abandoned, never ended with it: the next run finds them by their fixed ids.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError, FailureError, WorkflowAlreadyStartedError

with workflow.unsafe.imports_passed_through():
    from activities import ids
    from activities import signatures as s
    from activities.models import CalendarRequest, Stages, SwitchWindow
    from workflows import timeouts
    from workflows.failures import explain
    from workflows.messages import MigrationStart, ServiceStart, Start
    from workflows.preparation import open_tasks
    from workflows.run import Run

PHASES = ("preparation", "dual-write", "switchover", "cleanup")
REPLICATED = ("ready", "switched", "deprecated", "rolled-back", "released", "archived")
SWITCHED_OVER = ("deprecated", "released", "archived")
UNDER_WAY = ("switched", "rolled-back")


@workflow.defn(name="MigrationWorkflow")
class MigrationWorkflow(Run[MigrationStart]):
    """`{"plan": "ai-trader"}`."""

    title = "Migration"

    @workflow.init
    def __init__(self, start: Any = None) -> None:
        super().__init__(start, MigrationStart)
        self.stages = Stages()
        self.stage_news = False
        self.children: dict[str, workflow.ChildWorkflowHandle[Any, Any]] = {}
        self.waiting_on: list[str] = []

    @workflow.signal(name="stage_changed", description="A run of this migration has reached another stage")
    def on_stage_changed(self, payload: Any = None) -> None:
        self.stage_news = True

    @workflow.run
    async def run(self, start: Any = None) -> str:
        await self.begin()
        self.origin: datetime = self.start.virtual_origin or workflow.now()
        await self._read_stages()
        phase = self.start.resume or PHASES[0]
        if phase == "preparation":
            await self._preparation()
            await self._next_phase("dual-write")
        elif phase == "dual-write":
            await self._dual_write()
            await self._next_phase("switchover")
        elif phase == "switchover":
            await self._switchovers()
            await self._next_phase("cleanup")
        await self._cleanup()
        await self.end("nothing: the migration is complete")
        return "complete"

    async def _next_phase(self, phase: str) -> None:
        await self.may_proceed()
        await self.hand_on(resume=phase, virtual_origin=self.origin, current="")

    # --- phases ----------------------------------------------------------------------------------

    async def _preparation(self) -> None:
        self.phase = "preparation"
        plan = self.start.plan
        await self._until(
            {ids.preparation(plan): ("PreparationWorkflow", self._input())},
            lambda: self.stages.migration not in ("", "registered"),
            lambda: f"stage 'prepared' of {ids.preparation(plan)}",
        )

    async def _dual_write(self) -> None:
        self.phase = "dual-write"
        plan = self.start.plan
        names = [one.name for one in self.rules.services]

        def missing() -> list[str]:
            return [name for name in names if self.stages.services.get(name, "") not in REPLICATED]

        await self._until(
            {ids.replication(plan, name): ("ReplicationWorkflow", self._input(name)) for name in names},
            lambda: not missing(),
            lambda: "stage 'ready' of " + ", ".join(ids.replication(plan, name) for name in missing()),
        )
        await open_tasks(self, "dual_write", self.ref)

    async def _switchovers(self) -> None:
        self.phase = "switchover"
        await open_tasks(self, "switchover", self.ref)
        while True:
            await self._read_stages()
            order = [one.name for one in self.rules.services]
            remaining = [name for name in order if self.stages.services.get(name, "") not in SWITCHED_OVER]
            if not remaining:
                return
            current = next((name for name in remaining if self.stages.services.get(name, "") in UNDER_WAY), "")
            if not current:
                current = await self._await_window(remaining)
            await self._switch_over(current)
            if workflow.info().is_continue_as_new_suggested():
                await self._next_phase("switchover")

    async def _switch_over(self, service: str) -> None:
        workflow_id = ids.switchover(self.start.plan, service)
        self.phase = f"switchover of {service}"

        def words() -> str:
            stage = self.stages.services.get(service, "")
            text = f"stage 'deprecated' of {workflow_id} (now {stage!r})"
            if stage == "rolled-back":
                text = f"{service}, which was rolled back, to be switched again by approval at {workflow_id}"
            return text

        await self._until(
            {workflow_id: ("SwitchoverWorkflow", self._input(service))},
            lambda: self.stages.services.get(service, "") in SWITCHED_OVER,
            words,
        )

    async def _cleanup(self) -> None:
        self.phase = "cleanup"
        plan = self.start.plan
        await self._until(
            {ids.cleanup(plan): ("CleanupWorkflow", self._input())},
            lambda: self.stages.migration == "cleaned",
            lambda: f"stage 'cleaned' of {ids.cleanup(plan)}",
        )

    # --- calendar --------------------------------------------------------------------------------

    def virtual_now(self) -> datetime:
        """The time of the plan's calendar: real time, run faster by the plan's factor since the programme began."""
        return self.origin + (workflow.now() - self.origin) * self.rules.compress

    async def _await_window(self, remaining: list[str]) -> str:
        """Wait for the day of the next service in the calendar's order; its name."""
        while True:
            request = CalendarRequest(ref=self.ref, services=remaining, at=self.virtual_now())
            calendar = await self.do("reading the calendar", s.CALENDAR, request)
            if not calendar.windows:
                await self.park("calendar", "the calendar names no window for the services that are left")
                continue
            window: SwitchWindow = calendar.windows[0]
            opens = self.origin + (window.start - self.origin) / self.rules.compress
            self.deadlines[f"switchover of {window.service} opens"] = opens
            self.say(
                f"the switchover window of {window.service}: {window.start.isoformat(timespec='minutes')} to "
                f"{window.end.isoformat(timespec='minutes')} in the plan's calendar, opens "
                f"{opens.isoformat(timespec='seconds')}",
                state="WAITING",
            )
            left = opens - workflow.now()
            asked = self.plan_hash
            if left > timedelta(0):
                await self.wait(lambda: self.plan_hash != asked, left, f"window of {window.service}")  # noqa: B023
            await self._read_stages()
            await self.may_proceed()
            if self.plan_hash != asked:
                self.deadlines.pop(f"switchover of {window.service} opens", None)
                continue
            # A pause or an outage may have outlasted the window: then the calendar is asked again.
            if workflow.now() < opens + timeouts.window_of_run(window.end - window.start, self.rules.compress):
                self.deadlines.pop(f"switchover of {window.service} opens", None)
                return window.service

    # --- children and stages ---------------------------------------------------------------------

    def _input(self, service: str = "") -> Start:
        plan, plan_hash = self.start.plan, self.plan_hash
        return (
            ServiceStart(plan=plan, plan_hash=plan_hash, service=service)
            if service
            else Start(plan=plan, plan_hash=plan_hash)
        )

    async def _read_stages(self) -> None:
        self.stage_news = False
        self.stages = await self.do("reading the stages", s.STAGES, self.ref)
        for service, stage in self.stages.services.items():
            self.progress[f"stage of {service}"] = stage

    async def _until(
        self, children: dict[str, tuple[str, Start]], reached: Callable[[], bool], words: Callable[[], str]
    ) -> None:
        """Have those runs going until the stages say so; a run that failed parks, and `retry` starts it again."""
        poll = max(self.rules.hour, timedelta(seconds=5))
        self.waiting_on = list(children)
        await self._read_stages()
        while not reached():
            await self.may_proceed()
            for workflow_id, (name, start) in children.items():
                await self._ensure(workflow_id, name, start)
            self.say(words(), state="WAITING")
            await self.wait(lambda: self.stage_news or self._failed_child() is not None, poll, "stages are read again")
            failed = self._failed_child()
            if failed is not None:
                workflow_id, text = failed
                del self.children[workflow_id]
                await self.park(workflow_id, text)
            await self._read_stages()
        self.waiting_on = []

    def _failed_child(self) -> tuple[str, str] | None:
        for workflow_id, handle in self.children.items():
            if handle.done() and not handle.cancelled():
                error = handle.exception()
                if error is not None:
                    cause = error.cause if isinstance(error, ChildWorkflowError) and error.cause else error
                    return workflow_id, f"ended: {explain(cause)[1]}"
        return None

    async def _ensure(self, workflow_id: str, name: str, start: Start) -> None:
        """Start the run unless it is there already."""
        known = self.children.get(workflow_id)
        if known is not None:
            return
        try:
            self.children[workflow_id] = await workflow.start_child_workflow(
                name,
                start,
                id=workflow_id,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
                static_summary=f"{name.removesuffix('Workflow')} of {getattr(start, 'service', '') or start.plan}",
            )
        except WorkflowAlreadyStartedError:
            return
        except FailureError as error:
            await self.park(workflow_id, f"could not be started: {explain(error)[1]}")

    def nothing_open(self) -> str:
        if self.waiting_on:
            return f"the programme itself waits for no approval; send it to {', '.join(self.waiting_on)}"
        return super().nothing_open()

    def refuse_rollback(self) -> str:
        plan = self.start.plan
        known = [name for name, stage in self.stages.services.items() if stage in REPLICATED]
        if known:
            return "send it to the service's own run: " + ", ".join(ids.switchover(plan, name) for name in known)
        return "no service has been switched yet; there is nothing to roll back"
