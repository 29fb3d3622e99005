"""The example's schema and rows, on a real server."""

from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from cutover.errors import ConfigError
from cutover.postgres.databases import Database
from examples.ai_trader.check import compare_sides
from examples.ai_trader.generate import fill, spread
from examples.ai_trader.prepare import create_monolith, create_roles
from examples.ai_trader.roles import as_role, libpq_environment
from examples.ai_trader.tables import OWNERS, SERVICES, TABLES

#: Keys between services, by the names that the plan knows: what happens when the parent goes (`c` cascade, `n` null).
CROSSING = {
    "trades_user_id_fkey": "c",
    "trades_strategy_id_fkey": "n",
    "positions_user_id_fkey": "c",
    "strategies_user_id_fkey": "c",
    "ai_decisions_strategy_id_fkey": "n",
    "ai_trade_outcomes_trade_id_fkey": "c",
    "ai_trade_outcomes_decision_id_fkey": "n",
}


def nothing(table: str, done: int, total: int) -> None:
    """No progress wanted."""


async def test_the_schema_can_be_run_again_and_does_not_bring_a_dropped_foreign_key_back(monolith_db: Database) -> None:
    await create_monolith(monolith_db)
    async with monolith_db.session() as connection:
        await connection.execute("ALTER TABLE trades DROP CONSTRAINT trades_user_id_fkey")
    await create_monolith(monolith_db)
    await create_roles(monolith_db)
    async with monolith_db.session() as connection:
        found = {
            r["name"]: r["rule"]
            for r in await connection.fetch(
                "SELECT conname AS name, confdeltype::text AS rule FROM pg_constraint WHERE contype = 'f'"
            )
        }
    assert found == {
        **{name: rule for name, rule in CROSSING.items() if name != "trades_user_id_fkey"},
        "ai_decision_features_decision_id_fkey": "c",
    }


async def test_the_application_may_write_rows_and_nothing_else(monolith_db: Database) -> None:
    await create_monolith(monolith_db)
    for role in ("trader_app", "trader_cron"):
        async with as_role(monolith_db, role).session() as connection:
            await connection.execute("INSERT INTO users (email, display_name) VALUES ($1, 'A')", f"{role}@example.test")
            for statement in (
                "ALTER TABLE users DISABLE TRIGGER ALL",
                "TRUNCATE users CASCADE",
                "SET session_replication_role = replica",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
    async with monolith_db.session() as connection:
        owners = await connection.fetch(
            "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY($1)",
            list(TABLES),
        )
        assert [r["tableowner"] for r in owners] == ["trader_owner"]


async def test_a_fill_gives_the_rows_asked_for_the_same_for_the_same_seed(filled: Database) -> None:
    first = await _rows_and_digests(filled)
    assert {name: rows for name, (rows, _) in first.items()} == spread(5_000)
    again = await fill(filled, 5_000, 1, nothing)
    assert again.rows == {}, "tables that hold rows are left alone"
    for seed, same in ((1, True), (2, False)):
        async with filled.session() as connection:
            await connection.execute(
                "TRUNCATE users, strategies, agent_status, trades, positions, ai_decisions, ai_decision_features, "
                "ai_calibration_log, ai_trade_outcomes RESTART IDENTITY"
            )
        await fill(filled, 5_000, seed, nothing)
        assert ((await _rows_and_digests(filled)) == first) is same


async def test_a_fill_keeps_every_foreign_key_and_the_sequences(filled: Database) -> None:
    async with filled.session() as connection:
        orphans = await connection.fetchval(
            "SELECT (SELECT count(*) FROM trades t LEFT JOIN users u ON u.id = t.user_id WHERE u.id IS NULL)"
            " + (SELECT count(*) FROM trades t LEFT JOIN strategies s ON s.id = t.strategy_id"
            "    WHERE s.id IS NULL AND t.strategy_id IS NOT NULL)"
            " + (SELECT count(*) FROM positions p LEFT JOIN users u ON u.id = p.user_id WHERE u.id IS NULL)"
            " + (SELECT count(*) FROM strategies s LEFT JOIN users u ON u.id = s.user_id WHERE u.id IS NULL)"
            " + (SELECT count(*) FROM ai_decision_features f LEFT JOIN ai_decisions d ON d.id = f.decision_id"
            "    WHERE d.id IS NULL)"
            " + (SELECT count(*) FROM ai_trade_outcomes o LEFT JOIN trades t ON t.id = o.trade_id WHERE t.id IS NULL)"
            " + (SELECT count(*) FROM ai_trade_outcomes o LEFT JOIN ai_decisions d ON d.id = o.decision_id"
            "    WHERE d.id IS NULL AND o.decision_id IS NOT NULL)"
        )
        assert orphans == 0
        top = await connection.fetchrow("SELECT (SELECT max(id) FROM users) AS before, nextval('users_id_seq') AS next")
        assert top is not None
        assert top["next"] == top["before"] + 1
        busiest = await connection.fetchval("SELECT max(n) FROM (SELECT count(*) AS n FROM trades GROUP BY user_id) t")
        assert busiest > 10 * spread(5_000)["trades"] / spread(5_000)["users"], "a few users trade most"


async def test_a_fill_by_the_owner_alone_works_too(monolith_db: Database) -> None:
    await create_monolith(monolith_db)
    async with monolith_db.session() as connection:
        await connection.execute("ALTER ROLE trader_owner LOGIN")
        try:
            filled = await fill(as_role(monolith_db, "trader_owner"), 1_000, 1, nothing)
        finally:
            await connection.execute("ALTER ROLE trader_owner NOLOGIN")
    assert sum(filled.rows.values()) == 1_000


async def test_two_sides_are_compared_row_by_row(filled: Database) -> None:
    sides = dict.fromkeys(SERVICES, filled)
    assert all(comparison.equal for comparison in (await compare_sides(filled, sides)).values())


async def test_a_difference_of_one_value_or_one_row_is_seen(filled: Database, service_db: Database) -> None:
    await create_monolith(service_db)
    await fill(service_db, 5_000, 1, nothing)
    async with service_db.session() as connection:
        await connection.execute("UPDATE positions SET quantity = quantity + 0.00000001 WHERE id = 1")
        await connection.execute("DELETE FROM ai_trade_outcomes WHERE id = 1")
        await connection.execute("ALTER TABLE ai_calibration_log RENAME TO archived")
    compared = await compare_sides(filled, dict.fromkeys(SERVICES, service_db), within=0)
    assert {name for name, comparison in compared.items() if not comparison.equal} == {"positions", "ai_trade_outcomes"}
    assert compared["ai_calibration_log"].rows_service is None


def test_the_parts_of_a_total_add_up_and_too_few_are_refused() -> None:
    for rows in (100, 101, 999, 12_345, 1_000_000):
        assert sum(spread(rows).values()) == rows
        assert min(spread(rows).values()) >= 1
    with pytest.raises(ConfigError, match="at least 100 rows"):
        spread(99)


def test_every_table_has_an_owner_among_the_five_services() -> None:
    assert set(OWNERS.values()) == set(SERVICES)


def test_a_role_takes_the_place_of_the_superuser_and_never_has_its_password() -> None:
    trusted = Database("monolith", "postgresql://postgres@127.0.0.1:54310/x%20y?sslmode=disable")
    assert as_role(trusted, "trader_app").dsn == "postgresql://trader_app@127.0.0.1:54310/x%20y?sslmode=disable"
    assert as_role(trusted, "") is trusted
    guarded = Database("monolith", "postgresql://postgres:se%2Fcret@127.0.0.1:54310/x%20y?sslmode=disable")
    application, cron = (libpq_environment(as_role(guarded, role)) for role in ("trader_app", "trader_cron"))
    assert len({application["PGPASSWORD"], cron["PGPASSWORD"], "se/cret"}) == 3
    assert libpq_environment(guarded) == {
        "PGHOST": "127.0.0.1",
        "PGPORT": "54310",
        "PGUSER": "postgres",
        "PGPASSWORD": "se/cret",
        "PGDATABASE": "x y",
        "PGSSLMODE": "disable",
    }
    with pytest.raises(ConfigError, match="has to be a URL") as caught:
        as_role(Database("monolith", "service=mono"), "trader_app")
    assert "service=mono" not in str(caught.value)


async def test_roles_get_passwords_where_the_superuser_has_one(monolith_db: Database) -> None:
    # The test's servers trust everybody, so the DSN may name any password; what is looked at is that one was set.
    parts = urlsplit(monolith_db.dsn)
    guarded = Database(monolith_db.name, urlunsplit(parts._replace(netloc=parts.netloc.replace("@", ":secret@"))))
    await create_monolith(guarded)
    await create_roles(guarded)
    async with monolith_db.session() as connection:
        found = await connection.fetch(
            "SELECT rolname, rolpassword LIKE 'SCRAM-SHA-256$%' AS secret FROM pg_authid WHERE rolname LIKE 'trader%'"
        )
        for role in ("trader_app", "trader_cron"):
            await connection.execute(f"ALTER ROLE {role} PASSWORD NULL")
    assert {r["rolname"] for r in found if r["secret"]} == {"trader_app", "trader_cron"}


async def _rows_and_digests(database: Database) -> dict[str, tuple[int, str]]:
    async with database.session(TimeZone="UTC") as connection:
        records = {name: await connection.fetchrow(table.digest) for name, table in TABLES.items()}
    return {name: (record[0], record[1]) for name, record in records.items() if record is not None}
