"""What the plan names in the databases beside tables and keys: columns that date rows, standbys, and replicas."""

from cutover.errors import ConfigError
from cutover.postgres import repair, replicas, standbys
from cutover.postgres.identifiers import TableName
from cutover.postgres.suggestions import did_you_mean
from cutover.preflight.findings import Findings
from cutover.preflight.subject import Opened, Subject


async def check_named(subject: Subject, findings: Findings) -> None:
    """Every `timestamp` is a column that can date a row, every standby is connected, every replica is one."""
    plan = subject.plan
    if subject.monolith:
        await _timestamps(subject, subject.monolith, findings)
        await _standbys(subject.monolith, plan.monolith.standbys, "monolith.standbys", findings)
        await _replica(subject, subject.monolith, "monolith.replica", findings)
    for service, target in subject.targets.items():
        if target:
            await _standbys(target, plan.services[service].standbys, f"services.{service}.standbys", findings)
            await _replica(subject, target, f"services.{service}.replica", findings)


async def _timestamps(subject: Subject, monolith: Opened, findings: Findings) -> None:
    for service, rules in subject.plan.services.items():
        for key, table in rules.tables.items():
            info = subject.tables.get(TableName.parse(key))
            if table.timestamp is None or info is None:
                continue  # a table that is missing has its own finding
            problem, _ = await repair.dating(monolith.connection, info.columns, table.timestamp)
            if problem:
                findings.blocking(
                    "timestamp_column", f"plan: services.{service}.tables.{key}.timestamp",
                    f"column {table.timestamp!r} of {info.name} cannot date a row: {problem}",
                    "which of two rows is newer could not be told, and a conflict would stop the repair",
                    "correct the column in the plan (capitals count)",
                )  # fmt: skip


async def _standbys(opened: Opened, wanted: list[str], field: str, findings: Findings) -> None:
    if not wanted:
        return
    known = await standbys.connected(opened.connection)
    for name in sorted(set(wanted) - set(known)):
        listed = ", ".join(sorted(known)) or "none"
        findings.blocking(
            "standby_unknown", f"plan: {field}",
            f"no standby that calls itself {name!r} (application_name) is connected to the server of {opened.name}; "
            f"connected: {listed}",
            "every switch waits for it before its point of no return, and would be undone",
            did_you_mean(name, known) or "connect it, correct its name, or take it out of the plan",
        )  # fmt: skip


async def _replica(subject: Subject, primary: Opened, field: str, findings: Findings) -> None:
    replica = subject.replicas.get(primary.name)
    if replica is None:
        return  # none is named, or it cannot be reached, which has its own finding
    try:
        await replicas.require_replica(primary.connection, replica.connection, replica.name)
    except ConfigError as error:
        findings.blocking(
            "not_a_replica", f"plan: {field}", str(error),
            "scheduled comparisons would read rows of another database, or of none",
            "correct the DSN of the replica, or take it out of the plan",
        )  # fmt: skip
