"""What goes in and out of activities: small, typed, and free of secrets and of rows of user data.

Ages and lags are seconds by one database's clock, measured in the activity. Every field added later
needs a default, because histories of old runs are replayed.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from activities.pass_models import PassOpened as PassOpened
from activities.pass_models import PassRequest as PassRequest
from activities.pass_models import PassResult as PassResult
from activities.pass_models import Resolved as Resolved
from activities.pass_models import ResolveRequest as ResolveRequest
from activities.pass_models import SpanRequest as SpanRequest
from activities.pass_models import SpanWalked as SpanWalked
from activities.rules import FROZEN
from activities.rules import Ref as Ref
from activities.rules import Rules as Rules
from activities.rules import Scalar as Scalar
from activities.rules import ServiceRules as ServiceRules
from activities.rules import SideName as SideName
from activities.rules import TableRules as TableRules
from activities.rules import TaskRules as TaskRules


class Model(BaseModel):
    """Base of all of them: never changed after it was made."""

    model_config = FROZEN


class BindRequest(Model):
    """Bind a run to a registered plan; an empty hash means the one that is in force."""

    plan: str
    plan_hash: str = ""
    workflow_id: str = ""


class Stages(Model):
    """Where migration and services stand by the control database ("" where nothing is written yet)."""

    migration: str = ""
    services: dict[str, str] = {}


class StageChange(Model):
    """A new stage with a word on how it came about."""

    ref: Ref
    stage: str
    detail: str = ""
    actor: str = "workflow"


# --- calendar ------------------------------------------------------------------------------------


class CalendarRequest(Model):
    """The services that are still to be switched, and the (virtual) time it is now."""

    ref: Ref
    services: list[str]
    at: datetime


class SwitchWindow(Model):
    """The next window of a service, in virtual time; a start in the past means "now"."""

    service: str
    start: datetime
    end: datetime


class Calendar(Model):
    """The windows in the order in which services are to be switched."""

    windows: list[SwitchWindow] = []


# --- people --------------------------------------------------------------------------------------


class Decision(Model):
    """One accepted message of a person. `key` is unique in a run and makes recording it idempotent."""

    ref: Ref
    workflow_id: str
    key: str
    action: str
    by: str
    gate: str = ""
    evidence: str = ""
    reason: str = ""


class AlertRequest(Model):
    """An alert; deduplicated by kind, service and subject (a step, a table). A rollback always alerts."""

    ref: Ref
    kind: str
    severity: Literal["info", "warning", "critical"]
    text: str
    workflow_id: str = ""
    subject: str = ""


class TaskQuery(Model):
    """The human items of a phase that are still open: those of the service, or those of nobody in particular."""

    ref: Ref
    phase: str


class Tasks(Model):
    """Human items."""

    tasks: list[TaskRules] = []


class TaskDone(Model):
    """A human item of the checklist that somebody has acknowledged."""

    ref: Ref
    task: str
    by: str
    reason: str = ""


# --- gates ---------------------------------------------------------------------------------------


class GateRequest(Model):
    """Measure a gate; `against` is the code of the evidence an approval saw."""

    ref: Ref
    gate: str
    against: str = ""
    to_side: SideName = "service"


class GateEvidence(Model):
    """What was measured. `worse` compares with the evidence of the request's `against`."""

    code: str
    ok: bool = True
    problems: list[str] = []
    facts: dict[str, Scalar] = {}
    worse: bool = False
    why: str = ""


# --- preparation ---------------------------------------------------------------------------------


class PreflightResult(Model):
    """Counts of findings and the blocking ones in words."""

    blocking: int = 0
    advice: int = 0
    findings: list[str] = []


class Facts(Model):
    """What a step found or did, for the status page."""

    facts: dict[str, Scalar] = {}


class ChecklistRequest(Model):
    """The automatic items of a phase: those of the reference's service, or those of the whole migration."""

    ref: Ref
    phase: str = "preparation"


class ChecklistItem(Model):
    """An automatic item of the checklist with its evidence in words."""

    key: str
    text: str
    ok: bool
    evidence: str = ""


class Checklist(Model):
    """Automatic items of a phase."""

    items: list[ChecklistItem] = []


# --- replication and reconciliation --------------------------------------------------------------


class TableBackfill(Model):
    """Rows and bytes of one table's first copy."""

    table: str
    state: str
    rows: int = 0
    rows_estimated: int = 0
    bytes: int = 0


class Backfill(Model):
    """Progress of a service's first copy."""

    complete: bool
    tables: list[TableBackfill] = []

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.tables)

    @property
    def rows_estimated(self) -> int:
        return sum(max(one.rows_estimated, one.rows) for one in self.tables)

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.tables)


class Reading(Model):
    """One threshold: its value (None where it could not be read) and limit."""

    name: str
    value: float | None = None
    limit: float | None = None
    breached: bool = False
    waiting: bool = False
    not_applicable: bool = False
    detail: str = ""


class SampleRequest(Model):
    """`reads`: the two readings of a soak as well; `window_seconds`: how far back to look, at least."""

    ref: Ref
    reads: bool = False
    window_seconds: float = 0.0


class Readings(Model):
    """One sample of all thresholds."""

    readings: list[Reading] = []
    lag_seconds: float | None = None
    differences: int | None = None

    @property
    def waiting(self) -> list[str]:
        """Names of thresholds that have seen too little to be judged."""
        return sorted(one.name for one in self.readings if one.waiting)

    @property
    def breached(self) -> list[str]:
        """Names of breached thresholds, in a fixed order."""
        return sorted(one.name for one in self.readings if one.breached)


# --- switch --------------------------------------------------------------------------------------


class WatchRequest(Model):
    """Watch until something else is found than what the run shows already, for a shift at most."""

    ref: Ref
    #: `key` of each finding that is shown; None before the first look, which is told whatever it finds.
    shown: list[str] | None = None


class Found(Model):
    """One finding of the permanent monitor, with the deed that helps."""

    key: str
    severity: str
    text: str


class Watched(Model):
    """The last look; `ended`: the migration is cleaned up, so nothing is left to watch."""

    services: int = 0
    findings: list[Found] = []
    ended: bool = False


class FlagChange(Model):
    """Where `stale_ok` reads (all reads under strong consistency) go from now on."""

    ref: Ref
    read_from_new: bool
    actor: str = "workflow"


class Acknowledged(Model):
    """Instances that have acknowledged, and those whose lease ran out meanwhile."""

    acked: int = 0
    lapsed: int = 0


class Position(Model):
    """Where a service stands by the control database."""

    stage: str = ""
    primary_side: SideName = "monolith"
    read_from_new: bool = False
    epoch: int = 0
    #: A switch that was begun and not ended, by its id; "" for none.
    unfinished: str = ""
    unfinished_to: SideName = "service"


class GivenUpQuery(Model):
    """`evidence`: the code that the way back was given up by, where whoever asks names one."""

    ref: Ref
    evidence: str = ""


class Standing(Model):
    """Whether something that people decide stands, and in words what is missing."""

    ok: bool = True
    detail: str = ""


class SwitchOrder(Model):
    """A change of the writable side. The same `switch_id` always means the same change.

    `evidence` is the code that was approved; a change to the service's side needs it, a way back does not.
    """

    ref: Ref
    switch_id: str
    to_side: SideName
    evidence: str = ""


class StepTime(Model):
    """A step of the fenced section, in milliseconds."""

    name: str
    ms: float


class SwitchReport(Model):
    """How a change of the writable side ended; pauses in milliseconds."""

    result: Literal["done", "undone"]
    switch_id: str
    from_side: SideName = "monolith"
    to_side: SideName = "service"
    epoch: int = 0
    reason: str = ""
    pause_ms: float = 0.0
    write_pause_ms: float = 0.0
    acked: int = 0
    lapsed: int = 0
    compared_keys: int = 0
    steps: list[StepTime] = []


# --- cleanup -------------------------------------------------------------------------------------


class ArchiveResult(Model):
    """The export of the monolith's tables; no paths outside the archive folder."""

    folder: str = ""
    tables: int = 0
    rows: int = 0
    bytes: int = 0
    restored: bool = False
