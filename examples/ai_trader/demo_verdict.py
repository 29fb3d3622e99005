"""What came of a demo: the figures of its report, and a list in words of what did not hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from cutover.alerts import store as alerts
from cutover.control import audit, reports, switches
from cutover.control.audit import AuditRow
from cutover.control.database import Control
from cutover.plan.models import Plan
from cutover.settings import Settings
from examples.ai_trader.check import Verdict, check
from examples.ai_trader.demo_fleet import Fleet
from examples.ai_trader.demo_kills import MOMENTS, Killed
from examples.ai_trader.demo_watch import StageEvent, Tail
from examples.ai_trader.tables import OWNERS, SERVICES

AUDIT_ROWS = 100_000
#: A closed loop falls behind its rate for the length of a pause and of a backfill on a small machine.
RATE_SHARE = 0.75
WANTED_RATE = 300.0


@dataclass(frozen=True)
class SwitchLine:
    """One change of a writable side. `client_pause_ms` is announcement to flip by the control database's clock."""

    service: str
    to_side: str
    result: str
    epoch: int
    pause_ms: float
    write_pause_ms: float
    client_pause_ms: float | None
    recovered: bool
    reason: str


@dataclass(frozen=True)
class TableLine:
    """The last pass over a table."""

    service: str
    table: str
    direction: str
    rows: int
    differences: int
    unsettled: int


@dataclass
class Clients:
    """What the clients were told, all processes together; rows, but for reads and retries (requests)."""

    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    reads: int = 0
    reads_failed: int = 0
    stale_reads: int = 0
    retried: int = 0
    held: int = 0
    longest_wait_ms: float = 0.0
    psql_acknowledged: int = 0
    psql_fenced: int = 0
    psql_failed: int = 0
    psql_unknown: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass
class Course:
    """How the run went, from the demo's own notes."""

    seconds: float
    limit: float
    phases: dict[str, float]
    stages: Sequence[StageEvent]
    writes_per_second: float
    rate: float
    rows: int
    rolled_back: str
    kills: Sequence[Killed] = ()
    kills_wanted: bool = False
    gave_up: str = ""


@dataclass
class Findings:
    """All of it. `problems` is what did not hold."""

    course: Course
    clients: Clients
    check: Verdict
    switches: list[SwitchLine]
    tables: list[TableLine]
    passes: int
    differences_ever: int
    alerts: list[dict[str, Any]]
    final_stages: dict[str, str]
    web_page: str
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"ok": not self.problems, **asdict(self), "check": self.check.as_json()}


async def collect(
    settings: Settings, control: Control, plan: Plan, fleet: Fleet, course: Course, stages: Mapping[str, str], page: str
) -> Findings:
    """Look at the final databases; to be called when no client runs any more. Raises Unreachable, ConfigError."""
    sides = {service: settings.database(name) for service, name in SERVICES.items() if service in plan.services}
    # What has not been switched yet is still the monolith's.
    moved = {name: side for name, side in sides.items() if stages.get(name, "") in ("switched", "deprecated", *_GONE)}
    verdict = await check(fleet.logs, settings.database("monolith"), OWNERS, moved)
    async with control.connection() as connection:
        rows = await audit.entries(connection, plan.migration, AUDIT_ROWS)
        broken = await audit.verify(connection)
    last = await reports.latest_of_all(control, plan.migration)
    passes = await control.fetchrow(
        "SELECT count(*) AS passes, coalesce(sum(missing + extra + mismatched), 0)::bigint AS differences"
        " FROM control.report WHERE migration = $1 AND complete",
        plan.migration,
    )
    found = Findings(
        course=course,
        clients=clients_of(fleet),
        check=verdict,
        switches=switch_lines(await switches.outcomes(control, plan.migration), rows),
        tables=[TableLine(r.service, r.table, r.direction, r.rows_source, r.differences, r.unsettled) for r in last],
        passes=passes["passes"] if passes else 0,
        differences_ever=passes["differences"] if passes else 0,
        alerts=[
            {"severity": one.alert.severity, "kind": one.alert.kind, "service": one.alert.service or ""}
            | {"text": one.alert.text, "count": one.count}
            for one in await alerts.recent(control, plan.migration)
        ],
        final_stages=dict(stages),
        web_page=page,
    )
    found.problems = problems(found, plan) + [f"the audit log's hash chain: {one}" for one in broken]
    return found


_GONE = ("released", "archived")


def clients_of(fleet: Fleet) -> Clients:
    """Counts of the logs, which killed processes have as well, and statistics of those that ended in order."""
    traffic, psql = Tail(), Tail()
    traffic.read(fleet.traffic_logs)
    psql.read(fleet.psql_logs)
    found = Clients(
        acknowledged=traffic.counts["ok"],
        failed=traffic.counts["fail"] + traffic.counts["fenced"],
        unknown=traffic.counts["unknown"],
        stale_reads=traffic.counts["stale-read"],
        psql_acknowledged=psql.counts["ok"],
        psql_fenced=psql.counts["fenced"],
        psql_failed=psql.counts["fail"],
        psql_unknown=psql.counts["unknown"],
    )
    for one in fleet.statistics():
        found.reads += one["reads"]
        found.reads_failed += one["reads_failed"]
        found.retried += one["retried"]
        found.held += one["held"]
        found.longest_wait_ms = max(found.longest_wait_ms, one["longest_wait_ms"])
        for reason, count in one["reasons"].items():
            found.reasons[reason] = found.reasons.get(reason, 0) + count
    return found


def switch_lines(outcomes: Sequence[Mapping[str, Any]], rows: Sequence[AuditRow]) -> list[SwitchLine]:
    """The outcomes with the pause that the audit log shows: a recovered switch has measured none itself."""
    announced: dict[str, datetime] = {}
    ended: dict[str, datetime] = {}
    for row in reversed(rows):
        pause = str(row.detail.get("pause_id") or "")
        if row.action == "route.pause_announced":
            announced[pause] = row.at
        elif row.action in ("route.flipped", "route.pause_lifted"):
            ended.setdefault(pause, row.at)
    lines = []
    for one in outcomes:
        start, end = announced.get(one["switch_id"]), ended.get(one["switch_id"])
        lines.append(
            SwitchLine(
                service=one["service"],
                to_side=one["to_side"],
                result=one["result"],
                epoch=one["epoch"],
                pause_ms=round(one["pause_ms"], 1),
                write_pause_ms=round(one["write_pause_ms"], 1),
                client_pause_ms=round((end - start).total_seconds() * 1000, 1) if start and end else None,
                recovered=one["recovered"],
                reason=one.get("reason") or "",
            )
        )
    return lines


def problems(found: Findings, plan: Plan) -> list[str]:
    """What did not hold, in words; empty when all of it did."""
    course, clients = found.course, found.clients
    wrong: list[str] = []
    if course.gave_up:
        wrong.append(course.gave_up)
    if course.seconds > course.limit:
        wrong.append(f"the migration took {course.seconds:.0f} s, more than {course.limit:.0f} s")
    if found.final_stages.get("") != "cleaned":
        stages = ", ".join(
            f"{name or 'the migration'} is {stage}" for name, stage in sorted(found.final_stages.items())
        )
        wrong.append(f"the migration did not come to its end: {stages or 'nothing was begun'}")
    else:
        wrong += _switches(found, plan)
        wrong += _differences(found, plan)
    wrong += [
        f"{count} × {kind}: " + "; ".join(f"{f.table} {f.key}: {f.detail}" for f in found.check.shown if f.kind == kind)
        for kind, count in found.check.violations.items()
    ]
    if not found.check.rows_checked or not clients.acknowledged:
        wrong.append("no acknowledged write was there to be checked")
    for count, text in (
        (clients.failed, "writes failed through RoutedPool"),
        (clients.reads_failed, "reads failed through RoutedPool"),
        (clients.stale_reads, "reads were stale"),
        (clients.psql_unknown, "writes of psql have an unknown outcome"),
        (0 if course.kills_wanted else clients.unknown, "writes have an unknown outcome though nobody was killed"),
    ):
        if count:
            reasons = ", ".join(f"{name} {n}" for name, n in sorted(clients.reasons.items()))
            wrong.append(f"{count} {text}" + (f" ({reasons})" if reasons else ""))
    wanted = min(WANTED_RATE, course.rate * RATE_SHARE)
    if not course.kills_wanted and course.writes_per_second < wanted:
        wrong.append(f"{course.writes_per_second:.0f} rows were written a second; at least {wanted:.0f} were wanted")
    if course.kills_wanted:
        moments = len({one.moment for one in course.kills if one.process.startswith("worker")})
        if moments < MOMENTS:
            wrong.append(f"workers were killed at {moments} moments of {MOMENTS}")
        if not any(one.process.startswith("traffic") for one in course.kills):
            wrong.append("no traffic process was killed")
    return wrong


def _switches(found: Findings, plan: Plan) -> list[str]:
    wrong = []
    limit = plan.switchover.max_write_pause.total_seconds() * 1000
    for name in plan.services:
        done = [line for line in found.switches if line.service == name and line.result == "done"]
        wanted = ["service", "monolith", "service"] if name == found.course.rolled_back else ["service"]
        sides = [line.to_side for line in done]
        if sides != wanted:
            wrong.append(f"{name}: its writable side went {' → '.join(sides) or 'nowhere'}, not {' → '.join(wanted)}")
    for line in found.switches:
        if line.pause_ms > limit:
            wrong.append(f"{line.service}: a pause of {line.pause_ms:.0f} ms, more than the plan's {limit:.0f} ms")
    return wrong


def _differences(found: Findings, plan: Plan) -> list[str]:
    wrong = [
        f"{line.table} ({line.service}): {line.differences} differences, {line.unsettled} unsettled in its last pass"
        for line in found.tables
        if line.differences or line.unsettled
    ]
    known = {(line.service, line.table) for line in found.tables}
    wrong += [
        f"{table} ({name}): no complete pass was ever recorded"
        for name, service in plan.services.items()
        for table in service.tables
        if not any(one == name and seen.rpartition(".")[2] == table.rpartition(".")[2] for one, seen in known)
    ]
    return wrong
