"""Phase 4: all data is there, as fast as before, archived, and nothing of the migration is left."""

import asyncio

from cutover.archive import manifest
from cutover.archive import service as old_tables
from cutover.checklist.streaming import newest_reports
from cutover.checklist.subject import Subject, Verdict, verdict
from cutover.control.reports import TableReport
from cutover.errors import ConfigError
from cutover.flags import store as flags
from cutover.monitor import thresholds
from cutover.postgres import remains

#: Reports older than this do not prove that both sides are alike at the end; seconds.
FULL_PASS_SECONDS = 600.0
#: Between the decision that a report is young enough and the look at it here.
SLACK_SECONDS = 60.0


async def data_verified(subject: Subject) -> Verdict:
    """Zero confirmed differences, and nothing that would not settle, in the newest report of every table."""
    problems, rows, tables = [], 0, 0
    for service in subject.services:
        wrong, good = await newest_reports(subject, service, "reverse")
        problems += wrong
        for table, report in good.items():
            tables, rows = tables + 1, rows + report.rows_source
            if report.differences:
                problems.append(f"{service}.{table}: {report.differences} rows differ")
            if report.unsettled:
                problems.append(f"{service}.{table}: {report.unsettled} rows did not settle, so nobody can judge them")
    return verdict(problems, f"{rows} rows of {tables} tables, no confirmed difference")


async def full_reconciliation(subject: Subject) -> Verdict:
    """A pass over every table, from the service's side; as old as the passes took one after the other, and no more."""
    problems: list[str] = []
    found: dict[str, TableReport] = {}
    for service in subject.services:
        wrong, good = await newest_reports(subject, service, "reverse")
        problems += wrong
        found |= {f"{service}.{table}": report for table, report in good.items()}
    took = sum(report.duration_ms for report in found.values()) / 1000
    for name, report in found.items():
        if report.age > FULL_PASS_SECONDS + took + SLACK_SECONDS:
            problems.append(f"{name}: its full pass is {report.age:.0f} s old")
    oldest = max((report.age for report in found.values()), default=0.0)
    return verdict(problems, f"{len(found)} tables, the oldest pass {oldest:.0f} s ago")


async def benchmarks_match_baseline(subject: Subject) -> Verdict:
    """Write latency within its threshold: what cannot be read, or has seen too little, does not pass."""
    problems, seen = [], []
    for service in subject.services:
        sample = await thresholds.sample(
            subject.control, subject.pair(service), subject.plan, service, "not asked", primary="service"
        )
        reading = sample.values["write_latency_increase"]
        if not reading.passes:
            problems.append(f"{service}: write latency: {reading.detail}")
        seen.append(f"{service}: {reading.detail}")
    return verdict(problems, "; ".join(seen))


async def dual_write_disabled(subject: Subject) -> Verdict:
    """Nothing of ours at the service's side, and at the monolith only the fences of the tables that wait to go."""
    problems = []
    for service in subject.services:
        pair = subject.pair(service)
        for side in ("monolith", "service"):
            async with pair.at(side).session("cutover-checklist") as connection:
                left = await remains.of_service(connection, service, pair.tables, fences=side == "service")
            problems += [f"{service}: {one} is left at the {side}" for one in left]
    return verdict(problems, "no stream, slot, origin, queue or fence is left at the service's side")


async def tables_archived(subject: Subject) -> Verdict:
    """Every table of the service is in a manifest whose files are whole, and came back in its restore test."""
    problems, seen = [], []
    for service in subject.services:
        wrong, words = await _archive(subject, service)
        problems += [f"{service}: {one}" for one in wrong]
        seen.append(f"{service}: {words}")
    return verdict(problems, "; ".join(seen))


async def _archive(subject: Subject, service: str) -> tuple[list[str], str]:
    pair = subject.pair(service)
    try:
        found = manifest.read_manifest(old_tables.folder(subject.plan, service) / manifest.NAME)
    except ConfigError as error:
        return [str(error)], "no manifest"
    problems = await asyncio.to_thread(manifest.verify, found)
    match await old_tables.claim(pair, subject.control, found, subject.plan.hash):
        case "foreign":
            problems.append(old_tables.FOREIGN)
        case "former":
            problems.append("its archive was made under another plan")
    if found.facts.get(old_tables.RESTORE_TEST) != old_tables.PASSED:
        problems.append("its archive has not passed a restore test")
    listed = {entry.table for entry in found.entries}
    problems += [f"table {table} is not in the archive" for table in pair.tables if str(table) not in listed]
    rows = sum(entry.rows for entry in found.entries)
    return problems, f"{len(listed)} tables, {rows} rows, checksums verified, restored in a test"


async def feature_flags_removed(subject: Subject) -> Verdict:
    """No flag is left, and what instances follow instead leads to the services' own databases."""
    problems = [f"{service} still has flags" for service in await flags.left(subject.control, subject.migration)]
    routes = await flags.all(subject.control, subject.migration)
    for service in subject.services:
        if service not in routes or routes[service].primary_side != "service":
            problems.append(f"{service}: its last route does not lead to its own database")
    return verdict(problems, f"no flag; the last routes of {len(subject.services)} services lead to their databases")
