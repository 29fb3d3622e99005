"""The reference plan on two real clusters: nothing blocks it, and its five schemas are made alike."""

import asyncio
from pathlib import Path

from cutover.devstack.binaries import postgres_bin
from cutover.plan.load import load
from cutover.postgres import foreign_keys, loose_keys, roles, schema, sequences
from cutover.postgres.databases import Database
from cutover.postgres.identifiers import TableName
from cutover.preflight.run import preflight
from examples.ai_trader import prepare
from tests.conftest import FreshDatabase
from tests.servers import Clusters

PLAN = Path(prepare.__file__).with_name("plan.yaml")


async def test_the_reference_plan_is_prepared(clusters: Clusters, fresh_database: FreshDatabase) -> None:
    plan = load(PLAN)
    databases = {"monolith": await fresh_database(clusters.monolith, "monolith")}
    for service in plan.services.values():
        databases[service.database] = await fresh_database(clusters.services, service.database)
    monolith = databases["monolith"]
    await prepare.create_monolith(monolith)

    def lookup(name: str) -> Database:
        return databases[name]

    findings = await preflight(plan, lookup, sample_seconds=0.1, bindir=postgres_bin())
    if blocking := [f for f in findings if f.severity == "blocking"]:
        # the remedies of settings are statements that can be run as they stand
        for finding in blocking:
            assert finding.remedy.endswith("-- restart needed"), finding
            cluster = clusters.monolith if "monolith" in finding.where else clusters.services
            async with Database("", cluster.superuser_dsn("postgres")).session() as c:
                await c.execute(finding.remedy)
            await asyncio.to_thread(cluster.restart)
        findings = await preflight(plan, lookup, sample_seconds=0, bindir=postgres_bin())
        assert [f for f in findings if f.severity == "blocking"] == []
    for name, service in plan.services.items():
        target, tables = databases[service.database], [TableName.parse(key) for key in service.tables]
        await schema.apply_schema(monolith, target, tables, service=name, bindir=postgres_bin())
        assert await schema.compare(monolith, target, tables) == []
        granted = {r.role for r in await roles.copy_roles(monolith, target, tables, service.app_roles)}
        assert granted >= {"trader_app", "trader_cron"}
        async with monolith.session() as here, target.session() as there:
            await sequences.raise_sequences(here, there, tables, plan.switchover.sequence_margin)
            for crossing in await foreign_keys.crossing(here, tables):
                if plan.services[name].foreign_keys.get(crossing.key.name) == "loose":
                    loose_keys.check_can_be_loose(crossing.key)
    again = await preflight(plan, lookup, sample_seconds=0, bindir=postgres_bin())
    assert [f for f in again if f.severity == "blocking"] == []
