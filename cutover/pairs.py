"""From a plan to the two databases of a service."""

from collections.abc import Callable
from dataclasses import replace

from cutover.plan.models import Plan
from cutover.postgres.databases import Database, Pair
from cutover.postgres.identifiers import TableName


def pair(plan: Plan, service: str, database: Callable[[str], Database]) -> Pair:
    """The tables of a service with the databases of both sides.

    `database` resolves a name of the plan (`Settings.database`). Raises PlanError for an unknown
    service and ConfigError for a database (or a replica) without DSN.
    """
    chosen = plan.service(service)
    replicas = {plan.monolith.database: plan.monolith.replica, chosen.database: chosen.replica}
    found = between(plan, service, database(plan.monolith.database), database(chosen.database))
    return replace(found, replicas={primary: database(name) for primary, name in replicas.items() if name})


def between(plan: Plan, service: str, monolith: Database, target: Database) -> Pair:
    """The same for databases that are at hand, without replicas. Raises PlanError for an unknown service."""
    chosen = plan.service(service)
    return Pair(
        migration=plan.migration,
        service=service,
        monolith=monolith,
        target=target,
        tables=tuple(sorted(TableName.parse(name) for name in chosen.tables)),
        compare={TableName.parse(name): rules.compare for name, rules in chosen.tables.items()},
    )
