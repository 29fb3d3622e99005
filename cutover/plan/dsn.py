"""The variable that holds a database's DSN, and which databases of a plan have none. No DSN is read here."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from cutover.plan.models import Plan
from cutover.plan.rules import Problem

_NAME = re.compile("[A-Za-z][A-Za-z0-9_-]{0,62}", re.ASCII)


def variable(database: str, prefix: str = "CUTOVER_DSN_") -> str:
    """The name of the environment variable that holds a database's DSN."""
    return prefix + re.sub(r"[^A-Z0-9]", "_", database.upper())


def missing_dsns(plan: Plan | Mapping[str, Any], has_dsn: Callable[[str], bool]) -> list[Problem]:
    """A problem at each `database:` or `replica:` key whose database `has_dsn` (as `Settings.has_dsn`) does not know.

    `plan` may be plain data with other problems, so that all are reported at once. Standbys are looked
    for in `pg_stat_replication` of their primary, and need no DSN.
    """
    data: Mapping[str, Any] = plan.model_dump(mode="json") if isinstance(plan, Plan) else plan
    services = data.get("services")
    holders: list[tuple[tuple[str, ...], object]] = [(("monolith",), data.get("monolith"))]
    if isinstance(services, Mapping):
        holders += [(("services", str(name)), service) for name, service in services.items()]
    problems = []
    for path, holder in holders:
        for key in ("database", "replica"):
            name = holder.get(key) if isinstance(holder, Mapping) else None
            # Anything else in this place (a DSN, even) has its own problem, and must not show up in a variable's name.
            if isinstance(name, str) and _NAME.fullmatch(name) and not has_dsn(name):
                wanted = variable(name)
                problems.append(
                    Problem(
                        (*path, key),
                        f"database {name} has no DSN",
                        f"set {wanted} (or {wanted}_FILE) in the environment, or a line in .cutover/env",
                    )
                )
    return problems
