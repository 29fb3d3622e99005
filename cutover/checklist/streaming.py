"""Phase 2, service by service: the stream carries, and every table is compared."""

from cutover.checklist.subject import Subject, Verdict, verdict
from cutover.control import reports
from cutover.control.reports import TableReport
from cutover.errors import NotYet
from cutover.flags import store as flags
from cutover.postgres.databases import Direction, direction_from

#: Seconds that a marker may take; the same as at the gate `ready`.
MARKER_SECONDS = 10.0


async def _direction(subject: Subject, service: str) -> Direction:
    route = await flags.get(subject.control, subject.migration, service)
    return direction_from(route.primary_side)


async def carries_marker(subject: Subject, service: str, direction: Direction) -> tuple[list[str], str]:
    """What is wrong with the stream ([]: nothing), and how long a marker took."""
    stream = subject.stream(service, direction)
    if not await stream.exists():
        return [f"{service}: its {direction} stream does not exist"], "no stream"
    try:
        seconds = await stream.await_marker(await stream.put_marker(), MARKER_SECONDS)
    except NotYet as error:
        return [str(error)], "no marker"
    return [], f"{service}: a marker took {seconds * 1000:.0f} ms ({direction})"


async def cdc_pipeline(subject: Subject) -> Verdict:
    """The stream that the plan names carries a marker to the other side."""
    problems, seen = [], []
    for service in subject.services:
        wrong, words = await carries_marker(subject, service, await _direction(subject, service))
        problems += wrong
        seen.append(f"stream {subject.plan.service(service).stream}, {words}")
    return verdict(problems, "; ".join(seen))


async def cdc_replicating_correctly(subject: Subject) -> Verdict:
    """Healthy, and no apply error comes while a marker goes through; old errors that a retry healed are told."""
    problems, seen = [], []
    for service in subject.services:
        direction = await _direction(subject, service)
        stream = subject.stream(service, direction)
        before = await stream.health()
        wrong, words = await carries_marker(subject, service, direction)
        after = await stream.health()
        problems += wrong
        problems += [f"{service}: {after.detail}"] if not after.ok else []
        if after.apply_errors > before.apply_errors:
            problems.append(f"{service}: {after.apply_errors - before.apply_errors} apply errors just now")
        seen.append(f"{words}, {after.apply_errors} apply errors so far, none just now")
    return verdict(problems, "; ".join(seen))


async def newest_reports(
    subject: Subject, service: str, direction: Direction
) -> tuple[list[str], dict[str, TableReport]]:
    """The tables without a complete report in that direction under this plan, in words; the reports of the others."""
    found = await reports.latest_of_all(subject.control, subject.migration, service, direction=direction)
    good = {one.table: one for one in found if one.plan_hash == subject.plan.hash}
    missing = [table for table in subject.plan.service(service).tables if table not in good]
    return [f"{service}.{table}: no complete pass ({direction}) under this plan" for table in missing], good


async def data_validation_scripts(subject: Subject) -> Verdict:
    """A complete pass over each table."""
    problems, rows, tables = [], 0, 0
    for service in subject.services:
        wrong, good = await newest_reports(subject, service, await _direction(subject, service))
        problems += wrong
        tables += len(good)
        rows += sum(report.rows_source for report in good.values())
    return verdict(problems, f"{tables} tables compared, {rows} rows")


async def dashboard_operational(subject: Subject) -> Verdict:
    """The newest report of each table is not later than its cadence and the plan's limit of the lag."""
    problems, oldest = [], 0.0
    limit = subject.plan.thresholds.reconciliation_lag.total_seconds()
    for service in subject.services:
        wrong, good = await newest_reports(subject, service, await _direction(subject, service))
        problems += wrong
        for table, report in good.items():
            every = subject.plan.cadence(subject.plan.service(service).tables[table].reconcile.every).total_seconds()
            oldest = max(oldest, report.age)
            if report.age > every + limit:
                problems.append(f"{service}.{table}: its report is {report.age:.0f} s old, its cadence {every:.0f} s")
    return verdict(problems, f"the oldest report is {oldest:.0f} s old")
