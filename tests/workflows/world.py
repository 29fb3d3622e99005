"""A small world in memory behind the activities' names: what the databases would say, and faults on request."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import models as m
from activities.signatures import Signature, all_signatures


def refused(text: str) -> ApplicationError:
    """What the error translation makes of `Refused`."""
    return ApplicationError(text, type="Refused", non_retryable=True)


def unreachable(text: str = "database 'control' cannot be reached: ConnectionError") -> ApplicationError:
    """What the error translation makes of `Unreachable`."""
    return ApplicationError(text, type="Unreachable")


def replaced(text: str = "the migration goes by another plan now") -> ApplicationError:
    """What the error translation makes of `PlanReplaced`."""
    return ApplicationError(text, type="PlanReplaced", non_retryable=True)


class World:
    """Stages, flags and gates of one migration; every activity is a method of its signature's name."""

    def __init__(self, plan: str, services: tuple[str, ...] = ("trading_engine",), **rules: Any) -> None:
        self.plan = plan
        self.rules = m.Rules(
            migration=plan,
            plan_hash="hash-1",
            services=[
                m.ServiceRules(name=name, tables=[m.TableRules(name=f"{name}_rows", every=timedelta(minutes=5))])
                for name in services
            ],
        ).model_copy(update=rules)
        self.tasks = [
            m.TaskRules(key="staging", owner="backend", phase="preparation", description="tested", duration="3d"),
            m.TaskRules(key="runbook", owner="platform", phase="preparation"),
            m.TaskRules(key="docs", owner="all", phase="cleanup"),
        ]
        self.former: dict[str, m.Rules] = {}
        self.stage = "registered"
        self.stages_of: dict[str, str] = {}
        self.primary: dict[str, m.SideName] = defaultdict(lambda: "monolith")
        self.read_new: dict[str, bool] = defaultdict(bool)
        self.epochs: dict[str, int] = defaultdict(int)
        self.backfills: dict[str, int] = defaultdict(int)
        self.calls: list[tuple[str, Any]] = []
        self.faults: dict[str, list[BaseException]] = defaultdict(list)
        self.down: dict[str, BaseException] = {}
        self.problems: dict[str, list[str]] = defaultdict(list)
        self.worse: dict[str, str] = {}
        self.codes: dict[str, str] = {}
        self.breached: list[str] = []
        self.undone: list[str] = []
        self.decisions: list[m.Decision] = []
        self.alerts: list[m.AlertRequest] = []
        self.tasks_done: list[m.TaskDone] = []
        self.samples = 0
        self.unfinished = ""
        #: How the fenced section ends the unfinished switch.
        self.ends_as: Literal["done", "undone"] = "undone"
        self.outcomes: dict[str, m.SwitchReport] = {}
        self.standing = m.Standing()
        self.refused_stage = ""
        self.blocking = 0
        self.unchecked: dict[str, str] = {}
        self.differences = 0
        #: Into how many spans a pass is cut.
        self.spans = 1
        #: How many relays are at work, as far as this worker knows.
        self.relaying = 0
        #: The next span walked meets a freeze window of that length.
        self.frozen_for: timedelta | None = None
        #: What the monitor finds.
        self.found: list[m.Found] = []
        self.on: dict[str, Callable[[], Any]] = {}

    def activities(self) -> list[Callable[..., Any]]:
        """All of them, registered under the real names."""
        return [self._fake(signature) for signature in all_signatures().values()]

    def _fake(self, signature: Signature[Any, Any]) -> Callable[..., Any]:
        async def run(argument: Any) -> Any:
            self.calls.append((signature.name, argument))
            if signature.name in self.on:
                await self.on[signature.name]()
            if signature.name in self.down:
                raise self.down[signature.name]
            if self.faults[signature.name]:
                raise self.faults[signature.name].pop(0)
            return getattr(self, signature.name, lambda argument: self._empty(signature))(argument)

        run.__annotations__ = {"argument": signature.takes, "return": signature.returns}
        return activity.defn(name=signature.name)(run)

    def _empty(self, signature: Signature[Any, Any]) -> Any:
        return None if signature.returns is type(None) else signature.returns()

    def carry(self) -> None:
        """The services' streams are outboxes: an activity relays for as long as its run lets it."""
        services = [one.model_copy(update={"stream": "outbox"}) for one in self.rules.services]
        self.rules = self.rules.model_copy(update={"services": services})
        self.on["relay"] = self._relay

    async def _relay(self) -> None:
        if self.faults["relay"]:
            raise self.faults["relay"].pop(0)
        self.relaying += 1
        try:
            await self.never()
        finally:
            self.relaying -= 1

    async def never(self) -> None:
        """What an activity does that does not end by itself (see `on`)."""
        while True:
            activity.heartbeat()
            await asyncio.sleep(0.05)

    def count(self, name: str) -> int:
        return sum(1 for called, _ in self.calls if called == name)

    # --- the activities that remember something ---------------------------------------------------

    def bind_plan(self, request: m.BindRequest) -> m.Rules:
        if request.plan != self.plan:
            raise refused(f"no plan {request.plan!r} is registered: cutover plan register FILE")
        former = self.former.get(request.plan_hash)
        if former is None:
            return self.rules
        return self.rules.model_copy(update={"former": former, "adopted_by": "carol", "changes": "~ a: 1 → 2"})

    def adopt(self, **rules: Any) -> None:
        """A person adopts another plan; no run is told."""
        self.former[self.rules.plan_hash] = self.rules
        number = len(self.former) + 1
        self.rules = self.rules.model_copy(update={"plan_hash": f"hash-{number}", **rules})

    def require(self, ref: m.Ref) -> None:
        """As the real activities that look at the plan in force."""
        if ref.plan_hash != self.rules.plan_hash:
            raise replaced()

    def stages(self, ref: m.Ref) -> m.Stages:
        self.require(ref)
        return m.Stages(migration=self.stage, services=dict(self.stages_of))

    def set_stage(self, change: m.StageChange) -> None:
        if change.stage == self.refused_stage:
            raise refused(f"stage {change.stage!r} is refused")
        if change.stage == "prepared":
            self.require(change.ref)
        if change.ref.service:
            self.stages_of[change.ref.service] = change.stage
        else:
            self.stage = change.stage

    def calendar(self, request: m.CalendarRequest) -> m.Calendar:
        """A service a day, in the plan's order."""
        self.require(request.ref)
        order = [one.name for one in self.rules.services if one.name in request.services]
        return m.Calendar(
            windows=[
                m.SwitchWindow(
                    service=name,
                    start=request.at + timedelta(days=1 + number),
                    end=request.at + timedelta(days=1 + number, hours=4),
                )
                for number, name in enumerate(order)
            ]
        )

    def record_decision(self, decision: m.Decision) -> None:
        if decision.action == "approve":
            self.require(decision.ref)
        self.decisions.append(decision)

    def raise_alert(self, alert: m.AlertRequest) -> None:
        self.alerts.append(alert)

    def open_tasks(self, query: m.TaskQuery) -> m.Tasks:
        done = {one.task for one in self.tasks_done}
        return m.Tasks(
            tasks=[
                one
                for one in self.tasks
                if one.phase == query.phase and one.service == query.ref.service and one.key not in done
            ]
        )

    def complete_task(self, done: m.TaskDone) -> None:
        self.tasks_done.append(done)

    def preflight(self, ref: m.Ref) -> m.PreflightResult:
        return m.PreflightResult(blocking=self.blocking, findings=["wal_level is replica"] * self.blocking)

    def checklist(self, request: m.ChecklistRequest) -> m.Checklist:
        text, failing = f"checks of {request.phase}", self.unchecked.get(request.phase, "")
        return m.Checklist(
            items=[m.ChecklistItem(key="checks", text=text, ok=not failing, evidence=failing or "9 tables")]
        )

    def create_schema(self, ref: m.Ref) -> m.Facts:
        self.require(ref)
        return m.Facts()

    def start_stream(self, ref: m.Ref) -> m.Facts:
        self.backfills[str(ref.service)] += 1
        return m.Facts()

    def backfill_progress(self, ref: m.Ref) -> m.Backfill:
        polls = self.count("backfill_progress")
        table = m.TableBackfill(table="rows", state="copy", rows=min(polls, 3) * 100, rows_estimated=300, bytes=9000)
        return m.Backfill(complete=polls >= 3, tables=[table])

    def open_pass(self, request: m.PassRequest) -> m.PassOpened:
        return m.PassOpened(spans=self.spans, at_once=2)

    def walk_span(self, request: m.SpanRequest) -> m.SpanWalked:
        if self.frozen_for is None:
            return m.SpanWalked()
        until, self.frozen_for = activity.info().started_time + self.frozen_for, None
        return m.SpanWalked(frozen_until=until)

    def finish_pass(self, request: m.PassRequest) -> m.PassResult:
        return m.PassResult(table=request.table, rows_source=300, rows_target=300, missing=self.differences)

    def watch(self, request: m.WatchRequest) -> m.Watched:
        self.require(request.ref)
        return m.Watched(services=len(self.rules.services), findings=self.found, ended=self.stage == "cleaned")

    async def watching(self) -> None:
        """What the monitor's activity does: it comes back when something else is found (see `on`)."""
        shown = self.calls[-1][1].shown
        while self.stage != "cleaned" and shown == [one.key for one in self.found] and not self.down.get("watch"):
            activity.heartbeat()
            await asyncio.sleep(0.05)

    def sample_thresholds(self, request: m.SampleRequest) -> m.Readings:
        self.require(request.ref)
        self.samples += 1
        names = ("write_latency", "mismatch_rate", "secondary_failures", "reconciliation_lag", "servers")
        return m.Readings(
            readings=[m.Reading(name=one, value=0.5, limit=0.1, breached=one in self.breached) for one in names],
            lag_seconds=0.1,
            differences=0,
        )

    def position(self, ref: m.Ref) -> m.Position:
        service = str(ref.service)
        return m.Position(
            stage=self.stages_of.get(service, ""),
            primary_side=self.primary[service],
            read_from_new=self.read_new[service],
            epoch=self.epochs[service],
            unfinished=self.unfinished,
        )

    def given_up(self, query: m.GivenUpQuery) -> m.Standing:
        return self.standing

    def set_read_flag(self, change: m.FlagChange) -> m.Acknowledged:
        self.read_new[str(change.ref.service)] = change.read_from_new
        return m.Acknowledged(acked=4)

    def fenced_section(self, order: m.SwitchOrder) -> m.SwitchReport:
        if order.to_side == "service":
            self.require(order.ref)
        if order.switch_id in self.outcomes:
            return self.outcomes[order.switch_id]
        service = str(order.ref.service)
        before = self.primary[service]
        if order.switch_id == self.unfinished:
            self.unfinished = ""
            if self.ends_as == "undone":
                return m.SwitchReport(result="undone", switch_id=order.switch_id, reason="recovered")
        if self.undone:
            return m.SwitchReport(result="undone", switch_id=order.switch_id, reason=self.undone.pop(0))
        self.primary[service] = order.to_side
        self.read_new[service] = order.to_side == "service"
        self.epochs[service] += 1
        return m.SwitchReport(
            result="done",
            switch_id=order.switch_id,
            from_side=before,
            to_side=order.to_side,
            epoch=self.epochs[service],
            pause_ms=12.0,
            write_pause_ms=8.0,
        )

    def break_in_the_middle(self, words: str) -> None:
        """The next fenced section begins its switch and then fails for good, with both sides shut."""

        async def begun() -> None:
            if words not in told:
                told.append(words)
                self.unfinished = self.calls[-1][1].switch_id
                self.faults["fenced_section"].append(refused(words))

        told: list[str] = []
        self.on["fenced_section"] = begun

    def take_back_reverse(self, order: m.SwitchOrder) -> None:
        if self.unfinished:
            raise refused("another switch has begun; its streams are left alone")

    def archive_tables(self, ref: m.Ref) -> m.ArchiveResult:
        return m.ArchiveResult(folder="archive", tables=1, rows=300, bytes=9000, restored=True)

    # --- gates -----------------------------------------------------------------------------------

    def _gate(self, request: m.GateRequest) -> m.GateEvidence:
        self.require(request.ref)
        problems = list(self.problems[request.gate])
        later = "" if request.ref.plan_hash == "hash-1" else request.ref.plan_hash[-1]
        code = self.codes.get(request.gate, f"k7{request.gate[:2]}{later}")
        why = self.worse.pop(request.gate, "") if request.against else ""
        return m.GateEvidence(
            code=code, ok=not problems, problems=problems, facts={"differences": 0}, worse=bool(why), why=why
        )

    measure_prepared = measure_ready = measure_read = measure_write = measure_way_back = measure_quiet = _gate
