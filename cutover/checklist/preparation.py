"""Phase 1: the services' schemas, and a place where reconciliation can report."""

from cutover.checklist.subject import Subject, Verdict, verdict
from cutover.control import evidence, reports
from cutover.postgres import catalog, schema

#: Gate name under which a service's catalog fingerprints are kept as evidence.
FINGERPRINTS = "fingerprints"


async def service_schemas(subject: Subject) -> Verdict:
    """Every table of the plan exists in its service's database."""
    problems, there = [], 0
    for service in subject.services:
        pair = subject.pair(service)
        async with pair.target.session("cutover-checklist") as connection:
            missing = await catalog.missing_tables(connection, pair.tables)
        there += len(pair.tables) - len(missing)
        problems += [f"{service}: table {table} is not in {pair.target.name!r}" for table in missing]
    return verdict(problems, f"{there} tables in {len(subject.services)} databases")


async def schemas_match_source(subject: Subject) -> Verdict:
    """Both catalogs say the same of every table now, and gates have something to compare them with later."""
    problems, hashes = [], []
    for service in subject.services:
        pair = subject.pair(service)
        different = await schema.compare(pair.monolith, pair.target, pair.tables)
        problems += [f"{service}: {one}" for one in different]
        taken = await evidence.latest(subject.control, subject.migration, service, FINGERPRINTS)
        if taken is None or taken.plan_hash != subject.plan.hash:
            problems.append(f"{service}: no fingerprints of its catalogs were taken under this plan")
        else:
            hashes.append(f"{service} {str(taken.facts['facts']['service'])[:12]}")
    return verdict(problems, f"alike; fingerprints {', '.join(hashes)}")


async def reconciliation_dashboard(subject: Subject) -> Verdict:
    """The control database takes a report and gives it back."""
    service = subject.services[0]
    table = next(iter(subject.plan.service(service).tables))
    read = await reports.rehearse(subject.control, subject.migration, service, table, subject.plan.hash)
    problems = [] if read else ["a report that was written was not found again"]
    return verdict(problems, "a report was written, read back and taken back; shown by `cutover reconcile --show`")
