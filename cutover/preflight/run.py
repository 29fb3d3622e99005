"""All checks of preflight, one after the other; it reads, and changes nothing."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from cutover.plan.models import Plan
from cutover.postgres.databases import CONNECTION_ERRORS, Database
from cutover.preflight.activity import check_activity
from cutover.preflight.capacity import check_capacity
from cutover.preflight.findings import Finding, Findings
from cutover.preflight.keys import check_keys
from cutover.preflight.leftovers import check_leftovers
from cutover.preflight.named import check_named
from cutover.preflight.privileges import check_privileges
from cutover.preflight.servers import check_servers
from cutover.preflight.subject import Subject, open_subject
from cutover.preflight.subscriptions import check_subscriptions
from cutover.preflight.tables import check_tables


async def preflight(
    plan: Plan, database: Callable[[str], Database], *, sample_seconds: float = 3, bindir: Path | None = None
) -> list[Finding]:
    """What would break this migration, blocking findings first; an empty list when nothing was found.

    `database` gives a database by its name in the plan; `bindir` is where pg_dump is looked for (None: the PATH);
    the monolith's writers are watched for `sample_seconds`. A server that is down is a finding. Read-only.
    """
    findings = Findings()
    async with open_subject(plan, database, findings) as subject:
        checks: list[tuple[str, Callable[[Subject], Awaitable[None]]]] = [
            ("servers", lambda s: check_servers(s, findings, bindir)),
            ("settings", lambda s: check_capacity(s, findings)),
            ("privileges", lambda s: check_privileges(s, findings)),
            ("tables", lambda s: check_tables(s, findings)),
            ("keys", lambda s: check_keys(s, findings)),
            ("names in the plan", lambda s: check_named(s, findings)),
            ("leftovers", lambda s: check_leftovers(s, findings)),
            ("subscriptions", lambda s: check_subscriptions(s, findings)),
            ("activity", lambda s: check_activity(s, findings, sample_seconds)),
        ]
        for name, check in checks:
            try:
                await check(subject)
            except (asyncpg.PostgresError, *CONNECTION_ERRORS) as e:
                # a check that cannot read must not pass (invariant 6), and the others shall still be heard
                detail = str(e) if isinstance(e, asyncpg.InsufficientPrivilegeError) else type(e).__name__
                findings.blocking(
                    "check_failed", f"check of {name}", f"it could not be finished: {detail}",
                    "what was not looked at counts as not in order",
                    "see that the servers are up and cutover's role may read the catalogs, and run preflight again",
                )  # fmt: skip
    return findings.sorted()
