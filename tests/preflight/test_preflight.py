"""Each trap that preflight knows is found on real servers, and a sound pair of databases is not blocked."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import typer
from typer.testing import CliRunner

from cutover.cli.preflight import preflight as command
from cutover.devstack.binaries import postgres_bin
from cutover.errors import ConfigError
from cutover.plan.load import load_text
from cutover.plan.models import Plan
from cutover.postgres.databases import Database
from cutover.preflight.findings import Finding
from cutover.preflight.run import preflight
from tests.switch.test_standbys import standby

SOUND = """
CREATE TABLE users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
CREATE TABLE trades (id bigserial PRIMARY KEY, user_id bigint CONSTRAINT to_users REFERENCES users ON DELETE CASCADE)
"""


def plan(extra: str = "", users: str = "users: {}", trades: str = "trades: {}") -> Plan:
    return load_text(
        f"""
migration: test
monolith: {{database: mono}}
services:
  accounts:
    database: accounts_db
    tables:
      {users}
  trading:
    database: trading_db
    tables:
      {trades}
    {extra}
"""
    )


@pytest.fixture
def lookup(monolith_db: Database, service_db: Database) -> Callable[[str], Database]:
    """Both services share one database, as small migrations do."""
    return lambda name: Database(name, (monolith_db if name == "mono" else service_db).dsn)


async def look(
    lookup: Callable[[str], Database], sql: str = "", of: Plan | None = None, sample: float = 0
) -> dict[str, list[Finding]]:
    async with lookup("mono").session() as c:
        await c.execute(f"{SOUND}; {sql}")
    found: dict[str, list[Finding]] = {}
    for finding in await preflight(of or plan(), lookup, sample_seconds=sample, bindir=postgres_bin()):
        found.setdefault(finding.code, []).append(finding)
    return found


def blocking(found: dict[str, list[Finding]]) -> list[Finding]:
    return [f for fs in found.values() for f in fs if f.severity == "blocking"]


async def test_sound_databases_are_not_blocked(lookup: Callable[[str], Database]) -> None:
    found = await look(lookup)
    assert blocking(found) == []
    [key] = found["foreign_key_dropped"]
    assert "trades → users" in key.what
    assert all(f.what and f.why and f.remedy and f.where for fs in found.values() for f in fs)


FUNCTION = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
TRIGGER = "CREATE TRIGGER t BEFORE UPDATE ON trades FOR EACH ROW EXECUTE FUNCTION f()"
MUTE = """
CREATE TYPE mute;
CREATE FUNCTION mute_in(cstring) RETURNS mute LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION mute_out(mute) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'anyelement_out';
CREATE TYPE mute (INPUT = mute_in, OUTPUT = mute_out, LIKE = text);
ALTER TABLE trades ADD spot mute DEFAULT 'a'; INSERT INTO trades DEFAULT VALUES
"""

TRAPS = [
    ("no_primary_key", "ALTER TABLE trades DROP CONSTRAINT trades_pkey", "blocking"),
    ("deferrable_key", "ALTER TABLE trades DROP CONSTRAINT trades_pkey, ADD PRIMARY KEY (id) DEFERRABLE", "blocking"),
    ("replica_identity_nothing", "ALTER TABLE trades REPLICA IDENTITY NOTHING", "blocking"),
    ("replica_identity_full", "ALTER TABLE trades REPLICA IDENTITY FULL", "advice"),
    ("unlogged", "ALTER TABLE trades SET UNLOGGED", "blocking"),
    ("inheritance", "CREATE TABLE heir () INHERITS (trades)", "blocking"),
    ("large_objects", "ALTER TABLE trades ADD picture oid", "advice"),
    ("special_constraint", "ALTER TABLE trades ADD UNIQUE (user_id) DEFERRABLE", "advice"),
    ("rules", "CREATE RULE r AS ON DELETE TO trades DO ALSO NOTIFY x", "advice"),
    ("view", "CREATE VIEW v AS SELECT * FROM trades", "advice"),
    ("shared_sequence", "CREATE TABLE other (id int DEFAULT nextval('trades_id_seq'))", "advice"),
    ("sequence_bound", "ALTER SEQUENCE trades_id_seq MAXVALUE 2000", "blocking"),
    ("cycled_sequence", "ALTER SEQUENCE trades_id_seq CYCLE", "advice"),
    ("other_publication", "CREATE PUBLICATION bi FOR TABLE trades", "advice"),
    ("publication_not_ours", "CREATE PUBLICATION trading_pub FOR TABLE users", "blocking"),
    ("schema_cutover", "CREATE SCHEMA cutover", "advice"),
    ("foreign_key_not_valid", "ALTER TABLE trades DROP CONSTRAINT to_users, ADD CONSTRAINT to_users "
     "FOREIGN KEY (user_id) REFERENCES users NOT VALID", "advice"),
    ("row_security_copied", "ALTER TABLE trades ENABLE ROW LEVEL SECURITY", "advice"),
    ("no_text_form", MUTE, "blocking"),
    ("trigger_twice", f"{FUNCTION}; {TRIGGER}; ALTER TABLE trades ENABLE ALWAYS TRIGGER t", "blocking"),
    ("trigger_not_ours", f"{FUNCTION}; {TRIGGER}; ALTER TRIGGER t ON trades RENAME TO cutover_t", "blocking"),
    ("trigger_reaches_out", f"{FUNCTION.replace('BEGIN', 'BEGIN DELETE FROM users;')}; {TRIGGER}", "advice"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "sql", "severity"), TRAPS, ids=[code for code, _, _ in TRAPS])
async def test_a_trap_is_found(lookup: Callable[[str], Database], code: str, sql: str, severity: str) -> None:
    found = await look(lookup, sql)
    assert [f.severity for f in found.get(code, [])] == [severity], found


async def test_rules_for_keys_are_checked_by_name_and_kind(lookup: Callable[[str], Database]) -> None:
    found = await look(lookup, of=plan("foreign_keys: {to_user: loose}"))
    assert "did you mean 'to_users'" in found["foreign_key_unknown"][0].remedy
    async with lookup("mono").session() as c:
        await c.execute("ALTER TABLE trades DROP CONSTRAINT to_users, ADD CONSTRAINT to_users "
                        "FOREIGN KEY (user_id) REFERENCES users ON DELETE RESTRICT")  # fmt: skip
    findings = await preflight(plan("foreign_keys: {to_users: loose}"), lookup, sample_seconds=0, bindir=postgres_bin())
    assert [f.severity for f in findings if f.code == "foreign_key_not_loose"] == ["blocking"]


async def test_rules_of_a_comparison_are_checked_against_the_columns(lookup: Callable[[str], Database]) -> None:
    found = await look(lookup, of=plan(trades="trades: {compare: {equal: {user_id: case}}}"))
    assert "`equal: case` is for text" in found["compare_rule"][0].what
    for wrong in ("{exclude: [id]}", "{equal: {user: number}}"):
        of = plan(trades=f"trades: {{compare: {wrong}}}")
        findings = await preflight(of, lookup, sample_seconds=0, bindir=postgres_bin())
        assert [f.severity for f in findings if f.code == "compare_rule"] == ["blocking"]
    of = plan(users="users: {compare: {exclude: [name, only_at_the_service], equal: {}}}")
    assert not [
        f for f in await preflight(of, lookup, sample_seconds=0, bindir=postgres_bin()) if f.code == "compare_rule"
    ]


async def test_columns_whose_values_may_be_shown_are_looked_for(lookup: Callable[[str], Database]) -> None:
    found = await look(lookup, of=plan(trades="trades: {show_values: [user_id, user]}"))
    (finding,) = found["show_values"]
    assert (finding.severity, finding.remedy) == ("advice", "did you mean 'user_id'?")


async def test_rows_and_differences_at_the_target_block(lookup: Callable[[str], Database]) -> None:
    async with lookup("trading_db").session() as c:
        await c.execute("CREATE TABLE trades (id bigserial PRIMARY KEY, user_id int); INSERT INTO trades VALUES (1, 1)")
    found = await look(lookup)
    assert found["target_not_empty"][0].where == "trading_db: table trades"
    assert any("user_id" in f.what for f in found["target_differs"])


async def test_missing_tables_come_with_a_hint(lookup: Callable[[str], Database]) -> None:
    found = await look(lookup, of=plan(trades="Trades: {}"))
    assert "did you mean 'trades'" in found["table_missing"][0].what


async def test_a_server_that_is_down_and_a_missing_dsn_are_findings(lookup: Callable[[str], Database]) -> None:
    def partly(name: str) -> Database:
        if name == "trading_db":
            return Database(name, "postgresql://nobody@127.0.0.1:1/x?password=geheim")
        if name == "accounts_db":
            raise ConfigError("database 'accounts_db' has no DSN")
        return lookup(name)

    async with lookup("mono").session() as c:
        await c.execute(SOUND)
    findings = await preflight(plan(), partly, sample_seconds=0, bindir=postgres_bin())
    assert {"unreachable", "no_dsn", "foreign_key_dropped"} <= {f.code for f in findings}
    assert "geheim" not in str(findings)


async def test_writes_to_two_services_in_one_transaction_are_seen_live(lookup: Callable[[str], Database]) -> None:
    async with lookup("mono").session("billing") as c:
        await c.execute(SOUND)
        async with c.transaction():
            await c.execute("INSERT INTO users DEFAULT VALUES; INSERT INTO trades DEFAULT VALUES")
            findings = await preflight(plan(), lookup, sample_seconds=0.3, bindir=postgres_bin())
    [found] = [f for f in findings if f.code == "two_services_in_one_transaction"]
    assert "billing" in found.where
    assert found.what.startswith("writes trades, users of accounts, trading")


async def test_prepared_transactions_of_others_block(lookup: Callable[[str], Database]) -> None:
    async with lookup("mono").session() as c:
        await c.execute(f"{SOUND}; BEGIN; INSERT INTO users DEFAULT VALUES; PREPARE TRANSACTION 'theirs'")
        findings = await preflight(plan(), lookup, sample_seconds=0, bindir=postgres_bin())
        await c.execute("ROLLBACK PREPARED 'theirs'")
    assert ["'theirs'" in f.what for f in findings if f.code == "prepared_transaction"] == [True]


async def test_settings_are_counted_with_the_statements_that_set_them(
    lookup: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cutover.postgres import catalog

    real = catalog.server_facts

    async def poor(connection: asyncpg.Connection) -> catalog.ServerFacts:
        facts = await real(connection)
        facts.settings.update(wal_level="replica", max_replication_slots="2", max_wal_senders="0",
                              max_logical_replication_workers="1", max_active_replication_origins="1")  # fmt: skip
        return facts

    monkeypatch.setattr(catalog, "server_facts", poor)
    found = await look(lookup)
    # monolith: 2 forward slots, 2 x 2 of first copies, 2 of changed keys
    remedies = [f.remedy for f in found["max_replication_slots"]]
    assert "ALTER SYSTEM SET max_replication_slots = 8;  -- restart needed" in remedies
    assert {f.severity for f in found["wal_level"]} == {"blocking"}
    assert len(found["max_logical_replication_workers"]) == 2


async def test_roles_that_could_unfence_themselves_and_missing_rights_are_named(
    lookup: Callable[[str], Database], monolith_db: Database, service_db: Database
) -> None:
    async with monolith_db.session() as c, service_db.session() as d:
        await c.execute("CREATE ROLE pf_owner LOGIN; CREATE ROLE pf_app LOGIN; CREATE ROLE pf_cutover LOGIN;"
                        f"{SOUND}; ALTER TABLE trades OWNER TO pf_owner; GRANT INSERT ON users TO pf_app")  # fmt: skip
        await d.execute("CREATE ROLE pf_cutover LOGIN")
        try:

            def weak(name: str) -> Database:
                return Database(name, lookup(name).dsn.replace("postgres@", "pf_cutover@"))

            findings = await preflight(plan(), weak, sample_seconds=0, bindir=postgres_bin())
            codes = {(f.code, f.where.partition(":")[0]) for f in findings if f.severity == "blocking"}
            for code in ("create_on_database", "replication", "replica_role", "replication_origin",
                         "create_subscription", "read_stats", "conninfo_password"):  # fmt: skip
                assert {(code, "mono"), (code, "trading_db")} <= codes
            assert ("not_owner", "mono") in codes
            strong = await preflight(plan(), lookup, sample_seconds=0, bindir=postgres_bin())
            assert [f.where for f in strong if f.code == "could_unfence"] == ["mono: role pf_owner (trading)"]
        finally:
            await c.execute("DROP OWNED BY pf_owner, pf_app, pf_cutover; DROP ROLE pf_owner, pf_app, pf_cutover")
            await d.execute("DROP OWNED BY pf_cutover; DROP ROLE pf_cutover")


@pytest.fixture
def run(lookup: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(command)
    for name in ("mono", "accounts_db", "trading_db"):
        monkeypatch.setenv(f"CUTOVER_DSN_{name.upper()}", lookup(name).dsn)

    async def invoke(text: str, *arguments: str) -> Any:
        file = tmp_path / "plan.yaml"
        file.write_text(text)
        # the command runs its own event loop
        return await asyncio.to_thread(CliRunner().invoke, app, [str(file), "--sample", "0", *arguments])

    return invoke


PLAN = """
migration: test
monolith: {database: mono}
services:
  accounts: {database: accounts_db, tables: {users: {}}}
  trading: {database: trading_db, tables: {trades: {}}}
"""


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("changed_at", ""),
        ("version", ""),
        ("day", ""),
        ("Changed_at", "did you mean 'changed_at'?"),
        ("gone", "there is no such column"),
        ("name", "its type text does not date a row"),
        ("at_clock", "its type time without time zone does not date a row"),
    ],
)
@pytest.mark.parametrize("rule", ["last-write-wins", "source-wins"])
async def test_a_column_that_cannot_date_a_row_blocks(
    lookup: Callable[[str], Database], rule: str, column: str, words: str
) -> None:
    added = "CREATE DOMAIN birthday AS date; ALTER TABLE users ADD changed_at timestamptz, ADD version bigint, " \
        "ADD day birthday, ADD at_clock time"  # fmt: skip
    named = plan(users=f"users: {{conflict: {rule}, timestamp: {column}}}")
    found = blocking(await look(lookup, added, named))
    assert [f.code for f in found] == ["timestamp_column"] * bool(words)
    assert all(words in f.what and f.where == "plan: services.accounts.tables.users.timestamp" for f in found)


async def test_a_standby_that_nobody_is_blocks(lookup: Callable[[str], Database], tmp_path: Path) -> None:
    text = PLAN.replace("mono}", "mono, standbys: [standby_on, standby_one]}").replace(
        "database: trading_db", "database: trading_db, standbys: [third]"
    )
    async with standby(lookup("mono"), tmp_path):
        found = blocking(await look(lookup, of=load_text(text)))
    assert [(f.code, f.where) for f in found] == [
        ("standby_unknown", "plan: monolith.standbys"),
        ("standby_unknown", "plan: services.trading.standbys"),
    ]
    assert "'standby_on'" in found[0].what
    assert found[0].remedy == "did you mean 'standby_one'?"
    assert "'third'" in found[1].what


async def test_a_replica_that_is_none_blocks(lookup: Callable[[str], Database], monolith_db: Database) -> None:
    text = PLAN.replace("mono}", "mono, replica: mono_ro}")
    elsewhere: Callable[[str], Database] = lambda name: (  # noqa: E731
        Database(name, monolith_db.dsn) if name == "mono_ro" else lookup(name)
    )
    (found,) = blocking(await look(elsewhere, of=load_text(text)))
    assert (found.code, found.where) == ("not_a_replica", "plan: monolith.replica")
    assert "'mono_ro' is no replica: it is not in recovery" in found.what


async def test_the_exit_status_tells(run: Callable[..., Any], lookup: Callable[[str], Database]) -> None:
    async with lookup("mono").session() as c:
        await c.execute(SOUND)
        good = await run(PLAN, "--json")
        assert good.exit_code == 0, good.output
        facts = json.loads(good.stdout)
        assert facts["blocked"] is False
        assert {f["severity"] for f in facts["findings"]} == {"advice"}
        await c.execute("ALTER TABLE trades DROP CONSTRAINT trades_pkey")
        bad = await run(PLAN)
        assert bad.exit_code == 1
        assert "1 blocking" in bad.stdout
        wrong = await run(PLAN.replace("mono}", "mono, colour: red}"))
        assert wrong.exit_code == 2
        assert "colour" in wrong.output
