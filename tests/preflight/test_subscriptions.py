"""Tables that somebody else's subscription writes, on either side."""

from collections.abc import AsyncIterator, Callable

import pytest

from cutover.devstack.binaries import postgres_bin
from cutover.postgres.databases import Database
from cutover.postgres.identifiers import quote_literal
from cutover.preflight.findings import Finding
from cutover.preflight.run import preflight
from tests.conftest import FreshDatabase
from tests.preflight.test_preflight import lookup as lookup
from tests.preflight.test_preflight import plan
from tests.servers import Clusters
from tests.waiting import until

DDL = """
CREATE TABLE users (id bigint PRIMARY KEY, name text);
CREATE TABLE trades (id bigint, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE trades_a PARTITION OF trades FOR VALUES IN ('a');
CREATE TABLE elsewhere (id bigint PRIMARY KEY)
"""
Lookup = Callable[[str], Database]


@pytest.fixture
async def feed(clusters: Clusters, fresh_database: FreshDatabase, lookup: Lookup) -> AsyncIterator[Database]:
    """A database of somebody else with tables of the same names; its subscriptions are dropped at the end."""
    theirs = await fresh_database(clusters.services, "theirs")
    for database in (theirs, lookup("mono"), lookup("trading_db")):
        async with database.session() as c:
            await c.execute(DDL)
    yield theirs
    for database in (lookup("mono"), lookup("trading_db")):
        async with database.session() as c:
            for name in await c.fetch(
                "SELECT subname FROM pg_subscription WHERE subdbid = "
                "(SELECT oid FROM pg_database WHERE datname = current_database())"
            ):
                await c.execute(f"ALTER SUBSCRIPTION {name[0]} DISABLE")
                await c.execute(f"ALTER SUBSCRIPTION {name[0]} SET (slot_name = NONE)")
                await c.execute(f"DROP SUBSCRIPTION {name[0]}")
    async with theirs.session() as c:

        async def unused() -> bool:
            return not await c.fetchval(
                "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active"
            )

        await until(unused, "its slots are left")
        await c.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()"
        )


async def subscribe(at: Database, name: str, theirs: Database, tables: str, *, enabled: bool = True) -> None:
    async with theirs.session() as c:
        await c.execute(f"CREATE PUBLICATION {name}_pub FOR TABLE {tables}")
        await c.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", name)
    async with at.session() as c:
        await c.execute(
            f"CREATE SUBSCRIPTION {name} CONNECTION {quote_literal(theirs.dsn)} PUBLICATION {name}_pub "
            f"WITH (create_slot = false, slot_name = '{name}', copy_data = false, enabled = {enabled})"
        )


async def found(lookup: Lookup) -> list[Finding]:
    findings = await preflight(plan(), lookup, sample_seconds=0, bindir=postgres_bin())
    return [one for one in findings if one.code == "fed_by_subscription" or one.where == "check of subscriptions"]


async def test_a_table_that_somebody_elses_subscription_writes_blocks_on_either_side(
    feed: Database, lookup: Lookup
) -> None:
    await subscribe(lookup("mono"), "warehouse", feed, "trades_a, users")
    await subscribe(lookup("trading_db"), "mirror", feed, "users", enabled=False)
    await subscribe(lookup("mono"), "other", feed, "elsewhere")
    told = await found(lookup)
    assert {(one.severity, one.where, one.what) for one in told} == {
        ("blocking", "mono: subscription warehouse", "it writes trades_a"),
        ("blocking", "mono: subscription warehouse", "it writes users"),
        ("blocking", "accounts_db: subscription mirror", "it writes users (disabled at the moment)"),
    }
    assert all("ALTER SUBSCRIPTION" in one.remedy and "passes every fence" in one.why for one in told)


async def test_our_own_streams_are_not_somebody_elses(feed: Database, lookup: Lookup) -> None:
    await subscribe(lookup("trading_db"), "trading_sub", feed, "trades_a")
    await subscribe(lookup("mono"), "trading_reverse_sub", feed, "trades_a", enabled=False)
    assert await found(lookup) == []
    await subscribe(lookup("mono"), "accounts_reverse_sub", feed, "trades_a", enabled=False)
    assert [one.where for one in await found(lookup)] == ["mono: subscription accounts_reverse_sub"]


async def test_a_role_without_rights_sees_them_and_one_that_may_not_read_them_is_blocked(
    feed: Database, lookup: Lookup
) -> None:
    await subscribe(lookup("mono"), "warehouse", feed, "users", enabled=False)

    def weak(name: str) -> Database:
        return Database(name, lookup(name).dsn.replace("postgres@", "pf_reader@"))

    async with lookup("mono").session() as c, lookup("trading_db").session() as d:
        try:
            for session in (c, d):
                await session.execute("CREATE ROLE pf_reader LOGIN")
            assert [one.where for one in await found(weak)] == ["mono: subscription warehouse"]
            await c.execute("REVOKE SELECT ON pg_subscription_rel FROM PUBLIC")
            told = await found(weak)
            assert [(one.code, one.severity, one.where) for one in told] == [
                ("check_failed", "blocking", "check of subscriptions")
            ]
            assert "pg_subscription_rel" in told[0].what
        finally:
            await c.execute("GRANT SELECT ON pg_subscription_rel TO PUBLIC; DROP ROLE pf_reader")
            await d.execute("DROP ROLE pf_reader")
