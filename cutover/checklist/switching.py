"""Phase 3, service by service: watched without a hole, reported every hour, and a way back that works."""

from datetime import timedelta

from cutover.checklist.streaming import carries_marker
from cutover.checklist.subject import Subject, Verdict, verdict
from cutover.control import watching
from cutover.flags import store as flags

#: However short a soak is, it takes this many samples (activities/rules.py gives the same to the workflow).
SOAK_SAMPLES = 30
#: A hole that a worker's death leaves (an activity's timeout of a minute, and a restart) is shorter than this.
HOLE = timedelta(minutes=5)
#: How often a stream is watched outside of a soak.
WATCH = timedelta(minutes=10)
HOUR = timedelta(hours=1)
#: A summary or sample just being taken.
SLACK = timedelta(minutes=2)


async def error_rates_monitored(subject: Subject) -> Verdict:
    """Enough samples in the soak and no hole between them; and one just now."""
    plan, problems, seen = subject.plan, [], []
    longest = max(plan.waited(plan.switchover.soak) / 6, HOLE).total_seconds()
    newest = (3 * plan.cadence(WATCH) + SLACK).total_seconds()
    for service in subject.services:
        found = await watching.watched(subject.control, subject.migration, service)
        if found.longest_hole is None or found.soak_samples < SOAK_SAMPLES:
            problems.append(f"{service}: {found.soak_samples} samples in the soak, {SOAK_SAMPLES} are needed")
        elif found.longest_hole > longest:
            problems.append(
                f"{service}: nobody watched the soak for {found.longest_hole:.0f} s ({longest:.0f} s are the limit): "
                "'rollback' takes the reads back, and the soak is made again"
            )
        if found.newest_age is None or found.newest_age > newest:
            age = "there is none" if found.newest_age is None else f"it is {found.newest_age:.0f} s old"
            problems.append(f"{service}: no sample of the thresholds just now ({age})")
        seen.append(f"{service}: {found.soak_samples} samples, longest hole {found.longest_hole or 0:.1f} s")
    return verdict(problems, "; ".join(seen))


async def hourly_consistency_reports(subject: Subject) -> Verdict:
    """A summary row since the switch, and the newest one not older than two (compressed) hours."""
    problems, seen = [], []
    limit = (2 * subject.plan.cadence(HOUR) + SLACK).total_seconds()
    for service in subject.services:
        found = await watching.summaries_since_switch(subject.control, subject.migration, service)
        if found.newest_age is None:
            problems.append(f"{service}: no summary row since its writes moved")
        elif found.newest_age > limit:
            problems.append(
                f"{service}: its newest summary row is {found.newest_age:.0f} s old, the limit {limit:.0f} s"
            )
        hours = (found.since_switch or 0) / subject.plan.cadence(HOUR).total_seconds()
        seen.append(f"{service}: {found.rows} summary rows in {hours:.1f} hours of the plan")
    return verdict(problems, "; ".join(seen))


async def rollback_command_ready(subject: Subject) -> Verdict:
    """The service is the writable side, and its reverse stream carries a marker back to the monolith."""
    problems, seen = [], []
    for service in subject.services:
        route = await flags.get(subject.control, subject.migration, service)
        if route.primary_side != "service":
            problems.append(f"{service}: it is writable at the monolith; there is nothing to roll back")
            continue
        wrong, words = await carries_marker(subject, service, "reverse")
        problems += wrong
        seen.append(f"{words}; cutover rollback migration/{subject.migration}/{service}/switchover")
    return verdict(problems, "; ".join(seen))
