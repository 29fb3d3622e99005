"""The databases that preflight looks at: opened once, with what all checks need."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from cutover.errors import ConfigError, CutoverError
from cutover.plan.models import Plan
from cutover.postgres import catalog
from cutover.postgres.catalog import ServerFacts, TableInfo
from cutover.postgres.databases import CONNECTION_ERRORS, Database
from cutover.postgres.identifiers import TableName
from cutover.preflight.findings import Findings


@dataclass(frozen=True)
class Opened:
    """One database with a session in it and its server's facts."""

    database: Database
    connection: asyncpg.Connection
    facts: ServerFacts

    @property
    def name(self) -> str:
        return self.database.name


@dataclass(frozen=True)
class Subject:
    """The plan with its databases; a database that cannot be reached is None (and a finding)."""

    plan: Plan
    monolith: Opened | None
    targets: dict[str, Opened | None]
    #: The plan's tables that exist on the monolith.
    tables: dict[TableName, TableInfo]
    #: Of each database of the plan that names one, by the database's name.
    replicas: dict[str, Opened | None] = field(default_factory=dict)

    def names(self, service: str) -> list[TableName]:
        return [TableName.parse(key) for key in self.plan.services[service].tables]

    def infos(self, service: str) -> list[TableInfo]:
        return [self.tables[name] for name in self.names(service) if name in self.tables]

    def owners(self) -> dict[TableName, str]:
        """Each table and descendant on the monolith, with its service."""
        return {
            name: service
            for service in self.plan.services
            for info in self.infos(service)
            for name in info.everywhere
        }  # fmt: skip

    def opened(self) -> list[Opened]:
        return [o for o in (self.monolith, *self.targets.values()) if o is not None]

    def clusters(self) -> dict[int, list[Opened]]:
        """The databases by their server (system identifier)."""
        found: dict[int, list[Opened]] = {}
        for opened in self.opened():
            found.setdefault(opened.facts.system_identifier, []).append(opened)
        return found


@asynccontextmanager
async def open_subject(plan: Plan, database: Callable[[str], Database], findings: Findings) -> AsyncIterator[Subject]:
    """Opens what can be opened; for the rest there is a finding."""
    async with AsyncExitStack() as stack:
        by_name: dict[str, Opened | None] = {}
        for name in dict.fromkeys([plan.monolith.database, *(s.database for s in plan.services.values())]):
            by_name[name] = await _open(stack, name, database, findings)
        monolith = by_name[plan.monolith.database]
        targets = {service: by_name[rules.database] for service, rules in plan.services.items()}
        wanted = [TableName.parse(key) for rules in plan.services.values() for key in rules.tables]
        tables: dict[TableName, TableInfo] = {}
        if monolith:
            tables = {info.name: info for info in await catalog.find_tables(monolith.connection, wanted)}
            for missing, hint in (await catalog.missing_tables(monolith.connection, wanted)).items():
                findings.blocking(
                    "table_missing",
                    f"{monolith.name}: table {missing}",
                    "the plan names a table that the monolith does not have" + (f" ({hint})" if hint else ""),
                    "there is nothing to move under that name",
                    "correct the name in the plan (capitals count), or take the table out",
                )
        named = {plan.monolith.database: plan.monolith.replica}
        named |= {rules.database: rules.replica for rules in plan.services.values()}
        replicas = {primary: await _open(stack, name, database, findings) for primary, name in named.items() if name}
        yield Subject(plan, monolith, targets, tables, replicas)


async def _open(
    stack: AsyncExitStack, name: str, database: Callable[[str], Database], findings: Findings
) -> Opened | None:
    try:
        found = database(name)
        connection = await stack.enter_async_context(
            found.session("cutover-preflight", default_transaction_read_only="on")
        )
        return Opened(found, connection, await catalog.server_facts(connection))
    except ConfigError as e:
        findings.blocking("no_dsn", name, str(e), "without it the database cannot be reached", "set the DSN")
    except (CutoverError, *CONNECTION_ERRORS) as e:
        text = str(e) if isinstance(e, CutoverError) else type(e).__name__
        findings.blocking(
            "unreachable", name, text, "nothing about this database could be checked",
            "start it, or correct its DSN, network or pg_hba.conf, and run preflight again",
        )  # fmt: skip
    except asyncpg.PostgresError as e:
        findings.blocking(
            "unreadable", name, f"the server refuses to tell what it is: {e}", "nothing about it could be checked",
            "give cutover's role the right to run pg_control_system() and pg_control_checkpoint()",
        )  # fmt: skip
    return None
