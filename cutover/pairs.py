"""From a plan to the two databases of a service."""

from collections.abc import Callable

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
    return Pair(
        migration=plan.migration,
        service=service,
        monolith=database(plan.monolith.database),
        target=database(chosen.database),
        tables=tuple(sorted(TableName.parse(name) for name in chosen.tables)),
        replicas={primary: database(name) for primary, name in replicas.items() if name},
        compare={TableName.parse(name): rules.compare for name, rules in chosen.tables.items()},
    )
