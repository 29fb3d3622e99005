"""Phase 4: the way back given up by people, the machinery dropped, the monolith's tables archived and retired."""

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities import ids
    from activities import signatures as s
    from activities.models import GivenUpQuery, StageChange
    from workflows import timeouts
    from workflows.deadlines import QUIET
    from workflows.failures import StepFailed
    from workflows.gates import Gate
    from workflows.messages import Start
    from workflows.preparation import open_tasks
    from workflows.run import Run

GIVEN_UP = ("released", "archived")


@workflow.defn(name="CleanupWorkflow")
class CleanupWorkflow(Run[Start]):
    """`{"plan": "ai-trader"}` once every service is at stage `deprecated`."""

    title = "Cleanup"

    @workflow.init
    def __init__(self, start: Any = None) -> None:
        super().__init__(start, Start)
        self.given_up_by = ""
        self.stage_news = False

    @workflow.signal(name="stage_changed", description="A run of this migration has reached another stage")
    def on_stage_changed(self, payload: Any = None) -> None:
        self.stage_news = True

    @workflow.run
    async def run(self, start: Any = None) -> str:
        await self.begin()
        stages = await self._stages()
        open_services = [name for name, stage in stages.items() if stage not in ("deprecated", *GIVEN_UP)]
        self.require(
            not open_services,
            "not every service is deprecated yet, so the way back is still needed: "
            + ", ".join(f"{name} is {stages[name] or 'not begun'!r}" for name in open_services),
        )
        resume = self.start.resume
        if not resume:
            await self._give_up()
            for service in self.rules.services:
                await self._retire(service.name)
            await open_tasks(self, "cleanup", self.ref)
            question = "Everything is archived. Rename the monolith's tables, so that nobody uses them?"
            await self.gate(Gate("rename", question))
            self.say("the tables to be renamed", phase="rename")
            for service in self.rules.services:
                await self.do(f"renaming the tables of {service.name}", s.RENAME_TABLES, self._ref(service.name))
        await self._drop()
        record = await self.do("writing the record of the migration", s.RECORD_MIGRATION, self.ref)
        self.progress.update({f"record: {name}": value for name, value in record.facts.items()})
        await self.set_stage("cleaned")
        await self.end("nothing: cleaned up")
        return "cleaned"

    def _ref(self, service: str) -> Any:
        return self.ref.model_copy(update={"service": service})

    async def _stages(self) -> dict[str, str]:
        """Stage of each service of the plan, in its order."""
        stages = await self.do("reading the stages", s.STAGES, self.ref)
        return {one.name: stages.services.get(one.name, "") for one in self.rules.services}

    async def _give_up(self) -> None:
        """The only irreversible decision: named people, bound to a full pass over every table.

        Until every run has let go it can still be taken away, by a rollback or by another plan: then it is asked for
        again. Only then do the streams stop, which the passes of the gate need.
        """
        self.say("the way back to be given up", phase="give up the way back")
        self.given_up_by = self.start.plan
        while left := {name: stage for name, stage in (await self._stages()).items() if stage not in GIVEN_UP}:
            self.given_up_by = ""
            if back := [f"{name} is {stage!r}" for name, stage in left.items() if stage != "deprecated"]:
                listed = ", ".join(back)
                await self.park(
                    "giving up the way back", f"{listed}: gone back meanwhile; switch it again, then 'retry'"
                )
                continue
            opened = await self.gate(
                Gate(
                    "give-up-way-back",
                    "Give up the way back for all services? After this nothing can be rolled back.",
                    measure=s.MEASURE_WAY_BACK,
                    needs_evidence=True,
                    by_plan=True,
                )
            )
            self.given_up_by = ", ".join(opened.approvals)
            for service in left:
                if not await self._take_over(service, self.given_up_by, opened.code):
                    break
        for one in self.rules.services:
            await self.tell(ids.replication(self.start.plan, one.name), "released", {"by": self.given_up_by[:200]})

    async def _take_over(self, service: str, by: str, evidence: str) -> bool:
        """Have the service's switchover run let go. False where what people decided does not stand any more."""
        began = workflow.now()
        message = {"by": by[:200], "evidence": evidence, "reason": "cleanup"}
        query = GivenUpQuery(ref=self._ref(service), evidence=evidence)
        while True:
            stage = (await self._stages()).get(service, "")
            if stage in GIVEN_UP:
                return True
            standing = await self.do("looking whether the way back was given up", s.GIVEN_UP, query)
            if stage != "deprecated" or not standing.ok:
                why = standing.detail if stage == "deprecated" else f"{service} is {stage!r}"
                text = f"the way back is not given up any more: {why}"
                await self.alert("give-up-again", "warning", text, subject=service, best_effort=True)
                return False
            if not await self.tell(ids.switchover(self.start.plan, service), "hand_over", message):
                # Its run is gone (ended by hand); the approval stands for it.
                change = StageChange(ref=self._ref(service), stage="released", detail=f"given up by {by}"[:200])
                try:
                    await self.call(s.SET_STAGE, change)
                except StepFailed as failed:
                    await self.park(f"recording stage 'released' of {service}", failed.text)
                continue
            self.stage_news = False
            self.say(f"the switchover run of {service} to hand over", state="WAITING")
            pause = timeouts.growing(timeouts.TAKE_OVER_POLL, workflow.now() - began)
            await self.wait(lambda: self.stage_news or self.adopted, pause, "hand-over")

    async def _retire(self, service: str) -> None:
        """Drop what kept both sides alike, then archive the monolith's tables. All idempotent."""
        ref = self._ref(service)
        self.say(f"{service} to be retired", phase=f"retiring {service}")
        await self.do(f"deleting the schedules of {service}", s.DELETE_SCHEDULES, ref)
        dropped = await self.do(f"dropping loose keys, streams, slots and fences of {service}", s.DROP_MACHINERY, ref)
        self.progress.update({f"{service}: {name}": value for name, value in dropped.facts.items()})
        archive = await self.do(f"archiving the tables of {service}", s.ARCHIVE_TABLES, ref)
        restored = "restore tested" if archive.restored else "restore NOT tested"
        self.progress[f"archive of {service}"] = (
            f"{archive.tables} tables, {archive.rows} rows, {archive.bytes} bytes, {restored}"
        )
        await self.do(f"recording stage 'archived' of {service}", s.SET_STAGE, StageChange(ref=ref, stage="archived"))

    async def _drop(self) -> None:
        """Once nobody has used the renamed tables for as long as the plan says, people may drop them."""
        self.say("the renamed tables to stay unused", phase="quiet")
        while workflow.now() < (end := self.deadline(QUIET)):
            self.say(f"the renamed tables to stay unused until {end.isoformat(timespec='seconds')}", state="WAITING")
            await self.wait(
                lambda: self.deadline(QUIET) != end,
                end - workflow.now(),
                "the renamed tables stay unused",
            )
        await self.gate(
            Gate(
                "drop",
                "Drop the renamed tables of the monolith? The archive stays.",
                measure=s.MEASURE_QUIET,
                needs_evidence=True,
                by_plan=True,
            )
        )
        self.say("the tables to be dropped", phase="drop")
        for service in self.rules.services:
            await self.do(f"dropping the old tables of {service.name}", s.DROP_TABLES, self._ref(service.name))

    def refuse_rollback(self) -> str:
        if self.given_up_by:
            return f"the way back was given up by {self.given_up_by}"
        plan = self.start.plan
        return "send it to the service's own run: " + ", ".join(
            ids.switchover(plan, one.name) for one in self.rules.services
        )
