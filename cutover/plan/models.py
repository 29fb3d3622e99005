"""The plan: what a migration moves, from where to where, by which rules and on which days.

Every value but the databases, services and tables has a default. A plan is frozen; its hash stands for
all of its values, defaults included. In JSON (the control database, workflow inputs) durations and
percentages are text, as in the file, so that a plan read back is the same plan.
`docs/plan.md` explains each key.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from cutover.errors import PlanError
from cutover.plan import rules
from cutover.plan.checklist import default_tasks
from cutover.plan.fields import (
    At,
    DatabaseName,
    Duration,
    Identifier,
    MigrationName,
    Percentage,
    PositiveDuration,
    Rate,
    ServiceName,
    TableKey,
    TaskName,
    Text,
    TimeZone,
    canonical,
    wrong,
)

Phase = Literal["preparation", "dual_write", "switchover", "cleanup"]
StreamKind = Literal["logical", "outbox", "kafka"]
Consistency = Literal["strong", "eventual", "best_effort"]
Truncate = Literal["capture", "refuse"]
ConflictRule = Literal["source-wins", "last-write-wins", "manual"]
ForeignKeyRule = Literal["drop", "loose"]
WriteGate = Literal["zero-differences", "threshold"]
#: What may differ in a column without being a difference. The types each one fits: `cutover.postgres.columns`.
EqualRule = Literal["number", "case", "empty", "millisecond", "second", "bounds"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MonolithRef(_Model):
    """The database that the tables leave. `tables`: all tables that must find an owner (empty: not checked)."""

    database: DatabaseName
    replica: DatabaseName | None = None
    standbys: list[Identifier] = []
    tables: list[TableKey] = []


class DualWriteRules(_Model):
    """How long both databases carry every row before the first switch; how much of the time a first copy takes."""

    at_least: Duration = timedelta(days=14)
    copy_at_least: Rate = 0.5


class Reconcile(_Model):
    """The cadence of a table's comparison, how old or late its evidence may be, and how old a snapshot it may hold."""

    every: PositiveDuration = timedelta(minutes=5)
    max_lag: PositiveDuration = timedelta(minutes=10)
    max_snapshot: PositiveDuration = timedelta(seconds=30)


class Compare(_Model):
    """What a comparison passes over: columns left out of it, and differences of a column that count as none."""

    exclude: list[Identifier] = []
    equal: dict[Identifier, EqualRule] = {}


class Table(_Model):
    """One table: what to do where the sides differ, how often they are compared, and whose values `diff` may show."""

    conflict: ConflictRule = "source-wins"
    timestamp: Identifier | None = None
    alert_on_conflict: bool = True
    decide_within: PositiveDuration = timedelta(hours=24)
    show_values: list[Identifier] = []
    reconcile: Reconcile = Reconcile()
    compare: Compare = Compare()


def _steps(steps: list[int]) -> list[int]:
    rises = all(a < b for a, b in zip([0, *steps], steps, strict=False))
    if not steps or not rises or steps[-1] != 100:
        raise wrong(
            f"the steps {steps} do not rise to 100",
            "write rising percentages without %, the last one 100, as in [10, 30, 50, 90, 100]",
        )
    return steps


class Traffic(_Model):
    """The shares (percent) of the reads that go to the new side, step by step."""

    steps: Annotated[list[int], AfterValidator(_steps)] = [10, 30, 50, 90, 100]
    every: PositiveDuration = timedelta(days=7)


class Window(_Model):
    """When a service may be switched: from `at` on, for the length of `window`. No `at`: at any time."""

    at: At | None = None
    window: PositiveDuration = timedelta(hours=4)


def _stream(value: object) -> object:
    """`dual-write` is the migration strategy's name of the outbox."""
    return "outbox" if value == "dual-write" else value


class Service(_Model):
    """One owner of tables, and the database they move to."""

    database: DatabaseName
    replica: DatabaseName | None = None
    stream: Annotated[StreamKind, BeforeValidator(_stream)] = "logical"
    consistency: Consistency = "eventual"
    truncate: Truncate = "capture"
    tables: dict[TableKey, Table] = Field(min_length=1)
    foreign_keys: dict[Identifier, ForeignKeyRule] = {}
    traffic: Traffic = Traffic()
    switchover: Window = Window()
    app_roles: list[Identifier] = []
    standbys: list[Identifier] = []


class Thresholds(_Model):
    """What counts as a breach while a migration is watched."""

    write_latency_increase: Percentage = 0.20
    mismatch_rate: Rate = 0.001
    secondary_failure_rate: Rate = 0.01
    reconciliation_lag: PositiveDuration = timedelta(minutes=5)


class FreezeWindow(_Model):
    """When nothing is compared: from `at` on, every week, for the length of `window`, by the clock on the wall."""

    at: At
    window: PositiveDuration = timedelta(hours=4)


class ReconciliationRules(_Model):
    """How politely all passes together read: sessions at each database at most, and when none reads at all."""

    connections: int = Field(default=2, ge=1, le=64)
    freeze: list[FreezeWindow] = []


class SwitchoverRules(_Model):
    """Rules of every service's switch. `order`: the services one after the other (filled in: as listed)."""

    soak: PositiveDuration = timedelta(hours=1)
    deprecation: PositiveDuration = timedelta(hours=24)
    max_write_pause: PositiveDuration = timedelta(seconds=5)
    write_gate: WriteGate = "zero-differences"
    sequence_margin: int = Field(default=1000, ge=0, le=1_000_000_000)
    order: list[str] = []


class ApprovalRules(_Model):
    """How many people approve a gate, and how long their approval stands."""

    required: int = Field(default=2, ge=1, le=20)
    expire: PositiveDuration = timedelta(hours=24)


class Task(_Model):
    """Something that a person does and confirms; the phase does not end before it."""

    owner: Text = Field(min_length=1, max_length=100)
    duration: PositiveDuration
    phase: Phase
    description: Text = ""
    service: str | None = None


class CleanupRules(_Model):
    """The archive's folder, and how long nobody may have touched the monolith's tables before they are dropped."""

    archive_dir: Text = Field(default="archive", min_length=1)
    quiet_for: Duration = timedelta(days=7)


class Plan(_Model):
    """A whole migration. Services are in the order in which they are switched."""

    migration: MigrationName
    timezone: TimeZone = "UTC"
    compress: float = Field(default=1.0, ge=1, le=1_000_000, allow_inf_nan=False)
    cadence_floor: PositiveDuration = timedelta(seconds=1)
    monolith: MonolithRef
    dual_write: DualWriteRules = DualWriteRules()
    services: dict[ServiceName, Service] = Field(min_length=1)
    thresholds: Thresholds = Thresholds()
    reconciliation: ReconciliationRules = ReconciliationRules()
    switchover: SwitchoverRules = SwitchoverRules()
    approvals: ApprovalRules = ApprovalRules()
    default_tasks: bool = True
    tasks: dict[TaskName, Task] = {}
    cleanup: CleanupRules = CleanupRules()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """The defaults that depend on other values: the order of the services and the tasks."""
        return _filled_in(dict(data)) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _coherent(self, info: ValidationInfo) -> "Plan":
        if not info.context:  # the loader has run the same rules, with lines
            for problem in rules.problems(self.model_dump(mode="json")):
                raise wrong(f"{'.'.join(map(str, problem.path))}: {problem.what}", problem.right)
        return self

    @property
    def hash(self) -> str:
        """sha256 (hex) over the canonical JSON of all values; the same for any order of keys and comments.

        The order of the services is a value (`switchover.order`), for it is the order of the switches.
        """
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def waited(self, duration: timedelta) -> timedelta:
        """How long a wait on purpose (soak, dwell, calendar) takes in this run."""
        return duration / self.compress

    def cadence(self, duration: timedelta) -> timedelta:
        """How often something repeats in this run; a compressed one never below the plan's floor."""
        return max(self.waited(duration), min(self.cadence_floor, duration))

    def service(self, name: str) -> Service:
        """The service of that name. Raises PlanError, with the nearest name, where there is none."""
        if name not in self.services:
            raise PlanError(f"plan {self.migration}: no service {name!r}; {near(name, list(self.services))}")
        return self.services[name]

    def owner(self, table: str) -> str:
        """The service that owns a table (`name` or `schema.name`). Raises PlanError where nobody does."""
        owners = {canonical(key): name for name, service in self.services.items() for key in service.tables}
        if canonical(table) not in owners:
            raise PlanError(f"plan {self.migration}: no service owns table {table!r}; {near(table, sorted(owners))}")
        return owners[canonical(table)]

    def foreign_key_rule(self, constraint: str, holder: str, referenced: str | None = None) -> ForeignKeyRule:
        """The rule of a key that crosses services: the holder's word first, then the other's, then `drop`."""
        for name in (holder, referenced):
            if name in self.services and constraint in self.services[name].foreign_keys:
                return self.services[name].foreign_keys[constraint]
        return "drop"

    def tasks_of(self, phase: Phase) -> dict[str, Task]:
        """What people have to confirm before a phase ends, by the task's name."""
        return {name: task for name, task in self.tasks.items() if task.phase == phase}


def near(name: str, known: list[str]) -> str:
    """`did you mean …?`, or what is known."""
    found = get_close_matches(name, known, 1)
    return f"did you mean {found[0]}?" if found else f"known: {', '.join(known) or 'none'}"


def _filled_in(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with the order of services and the default tasks filled in; what is malformed stays as it is."""
    services, switchover, tasks = data.get("services"), data.get("switchover", {}), data.get("tasks", {})
    if isinstance(services, Mapping) and all(isinstance(name, str) for name in services):
        if isinstance(switchover, SwitchoverRules):
            switchover = {name: getattr(switchover, name) for name in SwitchoverRules.model_fields}
        if isinstance(switchover, Mapping):
            order = switchover.get("order") or list(services)
            data["switchover"] = {**switchover, "order": order}
            if isinstance(order, list):
                rank = {name: at for at, name in enumerate(order) if isinstance(name, str)}
                data["services"] = dict(sorted(services.items(), key=lambda item: rank.get(item[0], len(rank))))
    if isinstance(tasks, Mapping) and data.get("default_tasks", True) is True:
        merged: dict[Any, Any] = {name: dict(task) for name, task in default_tasks().items()}
        for name, task in tasks.items():
            both = isinstance(task, Mapping) and name in merged
            merged[name] = {**merged[name], **task} if both else task
        data["tasks"] = merged
    return data
