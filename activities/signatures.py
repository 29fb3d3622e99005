"""The name, argument, result and kind of every activity, in one place.

Workflows call activities by these signatures, so that they import neither drivers nor the library;
the classes of this package register under the same names, and a test holds the two together. The
kind names a set of timeouts and retries in `workflows/timeouts.py`.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from activities import models as m

In = TypeVar("In")
Out = TypeVar("Out")

#: quick: seconds. measure: reads a lot, minutes, heartbeats. long: hours, heartbeats, resumes.
#: pass: the same, and hears of its cancellation within a second. relay: goes on for as long as it is wanted, whatever
#: fails. section: the fenced section of a switch.
Kind = Literal["quick", "measure", "long", "pass", "relay", "section"]


@dataclass(frozen=True)
class Signature(Generic[In, Out]):
    """An activity as a workflow sees it."""

    name: str
    takes: type[In]
    returns: type[Out]
    kind: Kind = "quick"


Nothing = type(None)

# plans
BIND_PLAN = Signature("bind_plan", m.BindRequest, m.Rules)
STAGES = Signature("stages", m.Ref, m.Stages)
SET_STAGE = Signature("set_stage", m.StageChange, Nothing)
CLAIM_TABLES = Signature("claim_tables", m.Ref, Nothing)

# calendar, people
CALENDAR = Signature("calendar", m.CalendarRequest, m.Calendar)
RECORD_DECISION = Signature("record_decision", m.Decision, Nothing)
RAISE_ALERT = Signature("raise_alert", m.AlertRequest, Nothing)
OPEN_TASKS = Signature("open_tasks", m.TaskQuery, m.Tasks)
COMPLETE_TASK = Signature("complete_task", m.TaskDone, Nothing)
CHECKLIST = Signature("checklist", m.ChecklistRequest, m.Checklist, "measure")

# preparation
PREFLIGHT = Signature("preflight", m.Ref, m.PreflightResult, "measure")
CREATE_SCHEMA = Signature("create_schema", m.Ref, m.Facts, "measure")
COMPARE_SCHEMAS = Signature("compare_schemas", m.Ref, m.Facts, "measure")
CREATE_ROLES = Signature("create_roles", m.Ref, m.Facts)
INSTALL_FENCES = Signature("install_fences", m.Ref, m.Facts)
CAPTURE_LOOSE_KEYS = Signature("capture_loose_keys", m.Ref, m.Facts)
TAKE_FINGERPRINTS = Signature("take_fingerprints", m.Ref, m.Facts)
MEASURE_PREPARED = Signature("measure_prepared", m.GateRequest, m.GateEvidence, "measure")

# replication
RECORD_BASELINE = Signature("record_baseline", m.Ref, m.Facts)
START_STREAM = Signature("start_stream", m.Ref, m.Facts, "measure")
RELAY = Signature("relay", m.Ref, Nothing, "relay")
COPY_ROWS = Signature("copy_rows", m.Ref, Nothing, "long")
BACKFILL_PROGRESS = Signature("backfill_progress", m.Ref, m.Backfill)
ARM_FENCES = Signature("arm_fences", m.Ref, m.Facts)
PREPARE_CHANGED_KEYS = Signature("prepare_changed_keys", m.Ref, m.Facts)
CREATE_SCHEDULES = Signature("create_schedules", m.Ref, m.Facts)
DELETE_SCHEDULES = Signature("delete_schedules", m.Ref, m.Facts)
PROCESS_LOOSE_KEYS = Signature("process_loose_keys", m.Ref, m.Facts, "measure")
MEASURE_READY = Signature("measure_ready", m.GateRequest, m.GateEvidence, "long")

# reconciliation, monitoring
OPEN_PASS = Signature("open_pass", m.PassRequest, m.PassOpened, "pass")
WALK_SPAN = Signature("walk_span", m.SpanRequest, m.SpanWalked, "pass")
FINISH_PASS = Signature("finish_pass", m.PassRequest, m.PassResult, "pass")
RESOLVE_CONFLICTS = Signature("resolve_conflicts", m.ResolveRequest, m.Resolved, "long")
SAMPLE = Signature("sample_thresholds", m.SampleRequest, m.Readings)
WATCH = Signature("watch", m.WatchRequest, m.Watched, "relay")
SUMMARISE = Signature("summarise", m.Ref, m.Facts)

# switch
POSITION = Signature("position", m.Ref, m.Position)
MEASURE_READ = Signature("measure_read", m.GateRequest, m.GateEvidence, "long")
SET_READ_FLAG = Signature("set_read_flag", m.FlagChange, m.Acknowledged, "measure")
MEASURE_WRITE = Signature("measure_write", m.GateRequest, m.GateEvidence, "long")
PREPARE_REVERSE = Signature("prepare_reverse", m.SwitchOrder, Nothing, "measure")
DETACH_KEYS = Signature("detach_keys", m.Ref, m.Facts, "measure")
RESTORE_KEYS = Signature("restore_keys", m.Ref, m.Facts, "measure")
TAKE_BACK_REVERSE = Signature("take_back_reverse", m.SwitchOrder, Nothing, "measure")
FENCED_SECTION = Signature("fenced_section", m.SwitchOrder, m.SwitchReport, "section")
FINISH_SWITCH = Signature("finish_switch", m.SwitchOrder, Nothing, "measure")

# cleanup
GIVEN_UP = Signature("given_up", m.GivenUpQuery, m.Standing)
MEASURE_WAY_BACK = Signature("measure_way_back", m.GateRequest, m.GateEvidence, "long")
DROP_MACHINERY = Signature("drop_machinery", m.Ref, m.Facts, "measure")
ARCHIVE_TABLES = Signature("archive_tables", m.Ref, m.ArchiveResult, "long")
RENAME_TABLES = Signature("rename_tables", m.Ref, m.Facts)
MEASURE_QUIET = Signature("measure_quiet", m.GateRequest, m.GateEvidence, "measure")
DROP_TABLES = Signature("drop_tables", m.Ref, m.Facts, "long")
RECORD_MIGRATION = Signature("record_migration", m.Ref, m.Facts)


def all_signatures() -> dict[str, Signature[object, object]]:
    """Every signature of this module by its activity's name."""
    return {one.name: one for one in globals().values() if isinstance(one, Signature)}
