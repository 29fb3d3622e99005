"""Every mistake in a plan file has its message: file, line, field, what is wrong, what would be right."""

from pathlib import Path

import pytest

from cutover.errors import PlanError
from cutover.plan.load import examine, load, load_text
from tests.plan.minimal import MINIMAL, with_line

ORDERS = "database: orders_db"
TABLE = "orders:"
NAMES_63 = "t" * 63

#: what is changed, the text, and the whole line that has to be among the problems
CASES = [
    ("unknown service in the order", MINIMAL + "switchover: {order: [orders, user]}\n",
     "plan.yaml:15: switchover.order[1]: unknown service user; did you mean users?"),
    ("unknown service in a task", MINIMAL + "tasks:\n  x: {owner: a, duration: 1d, phase: cleanup, service: billing}\n",
     "plan.yaml:16: tasks.x.service: unknown service billing; services of this plan: orders, users"),
    ("table in two services", with_line("users: {}", "      orders: {}"),
     "plan.yaml:15: services.users.tables.orders: table orders is in two services, orders and users; "
     "leave it in one of them"),
    ("table in two services, spelt in two ways", with_line("users: {}", "      public.orders: {}"),
     "plan.yaml:15: services.users.tables.'public.orders': table public.orders is in two services, orders and users; "
     "leave it in one of them"),
    ("table twice in one service", with_line("items: {}", "      public.items: {}"),
     "plan.yaml:11: services.orders.tables.'public.items': public.items and items are the same table; list it once"),
    ("table without owner", with_line("database: monolith", "  tables:", "    - orders", "    - item"),
     "plan.yaml:6: monolith.tables[1]: table item has no owner; list it under services.<service>.tables, "
     "or take it out of monolith.tables (did you mean items?)"),
    ("duration without unit", MINIMAL + "dual_write:\n  at_least: 14\n",
     "plan.yaml:16: dual_write.at_least: 14 is a number without a unit; "
     "write a number with its unit: w, d, h, m, s or ms, as in 14d, 1h30m or 500ms"),
    ("quoted duration without unit", MINIMAL + "dual_write: {at_least: '14'}\n",
     "plan.yaml:15: dual_write.at_least: '14' is a number without a unit; "
     "write a number with its unit: w, d, h, m, s or ms, as in 14d, 1h30m or 500ms"),
    ("no duration at all", MINIMAL + "switchover: {soak: soon}\n",
     "plan.yaml:15: switchover.soak: 'soon' is not a duration; "
     "write a number with its unit: w, d, h, m, s or ms, as in 14d, 1h30m or 500ms"),
    ("duration of zero", MINIMAL + "switchover: {soak: 0s}\n",
     "plan.yaml:15: switchover.soak: a duration of zero has no meaning here; "
     "write a duration longer than zero, as in 1s"),
    ("percentage without %", MINIMAL + "thresholds: {mismatch_rate: 0.1}\n",
     "plan.yaml:15: thresholds.mismatch_rate: 0.1 is a number without %; "
     "write a number with a percent sign, as in 20% or 0.1% (did you mean 0.1%?)"),
    ("rate over 100%", MINIMAL + "thresholds: {mismatch_rate: 101%}\n",
     "plan.yaml:15: thresholds.mismatch_rate: a rate cannot be more than 100%; write a percentage from 0% to 100%"),
    ("unknown key", MINIMAL + "treshold: {}\n", "plan.yaml:15: treshold: unknown key; did you mean thresholds?"),
    ("unknown key in a table", with_line("reconcile: {every: 5m, max_lag: 10m}", "        conflicts: manual"),
     "plan.yaml:10: services.orders.tables.orders.conflicts: unknown key; did you mean conflict?"),
    ("unknown key of the strategy", with_line("reconcile: {every: 5m, max_lag: 10m}", "        strategy: manual"),
     "plan.yaml:10: services.orders.tables.orders.strategy: unknown key; write `conflict`"),
    ("the strategy's dual_write block", MINIMAL + "dual_write:\n  orders:\n    tables: [orders]\n",
     "plan.yaml:16: dual_write.orders: unknown key; list the tables of orders under `services: {orders: …}` "
     "(docs/plan.md maps the strategy's blocks)"),
    ("wrong type: number", MINIMAL + "approvals: {required: '2'}\n",
     "plan.yaml:15: approvals.required: this is not a whole number; write a whole number, as in 1000"),
    ("wrong type: truth", with_line("items: {}", "      x: {alert_on_conflict: yes}"),
     "plan.yaml:11: services.orders.tables.x.alert_on_conflict: this is not true or false; write true or false"),
    ("a list where a mapping should be", "migration: shop\nmonolith: {database: m}\nservices:\n  - orders\n",
     "plan.yaml:3: services: this is not a mapping; write `key: value` lines below the key, indented"),
    ("tables as a list", with_line(ORDERS, "    foreign_keys: [a]"),
     "plan.yaml:7: services.orders.foreign_keys: this is not a mapping; "
     "write `key: value` lines below the key, indented"),
    ("empty services", "migration: shop\nmonolith: {database: m}\nservices: {}\n",
     "plan.yaml:3: services: this is empty; write at least one entry"),
    ("no services", "migration: shop\nmonolith: {database: m}\n",
     "plan.yaml:1: services: the key is missing; add `services: …`"),
    ("no database", "migration: shop\nmonolith: {database: m}\nservices:\n  x:\n    tables: {a: {}}\n",
     "plan.yaml:4: services.x.database: the key is missing; add a name, as in `database: trading_engine_db`"),
    ("no tables", "migration: shop\nmonolith: {database: m}\nservices:\n  x: {database: d, tables: {}}\n",
     "plan.yaml:4: services.x.tables: this is empty; write at least one entry"),
    ("duplicate key", with_line(ORDERS, "    database: other_db"),
     "plan.yaml:7: services.orders.database: the key is there twice, first on line 6; keep one of them"),
    ("unknown time zone", MINIMAL + "timezone: Mars/Olympus\n",
     "plan.yaml:15: timezone: 'Mars/Olympus' is not a known time zone; "
     "write a name of the tz database, as in UTC or Europe/Rome"),
    ("time zone that is a folder", MINIMAL + "timezone: Europe\n",
     "plan.yaml:15: timezone: 'Europe' is not a known time zone; "
     "write a name of the tz database, as in UTC or Europe/Rome"),
    ("day without time", with_line(ORDERS, "    switchover: {at: monday 9}"),
     "plan.yaml:7: services.orders.switchover.at: 'monday 9' is not a weekday and a time; write `monday 09:00`"),
    ("no such day", with_line(ORDERS, "    switchover: {at: moonday 09:00}"),
     "plan.yaml:7: services.orders.switchover.at: 'moonday' is not a weekday; write one of monday, tuesday, "
     "wednesday, thursday, friday, saturday, sunday in full"),
    ("no such time", with_line(ORDERS, "    switchover: {at: monday 25:00}"),
     "plan.yaml:7: services.orders.switchover.at: 'monday 25:00' has no such time of day; "
     "write a weekday and a time of 24 hours, as in `monday 09:00`"),
    ("steps that do not reach 100", with_line(ORDERS, "    traffic: {steps: [10, 50]}"),
     "plan.yaml:7: services.orders.traffic.steps: the steps [10, 50] do not rise to 100; "
     "write rising percentages without %, the last one 100, as in [10, 30, 50, 90, 100]"),
    ("steps that fall", with_line(ORDERS, "    traffic: {steps: [50, 10, 100]}"),
     "plan.yaml:7: services.orders.traffic.steps: the steps [50, 10, 100] do not rise to 100; "
     "write rising percentages without %, the last one 100, as in [10, 30, 50, 90, 100]"),
    ("one database for two services", MINIMAL.replace("users_db", "orders_db"),
     "plan.yaml:12: services.users.database: the database of users is the same as the database of orders "
     "(both read CUTOVER_DSN_ORDERS_DB); give each service a database of its own"),
    ("databases that share a variable", MINIMAL.replace("users_db", "orders-DB"),
     "plan.yaml:12: services.users.database: the database of users is the same as the database of orders "
     "(both read CUTOVER_DSN_ORDERS_DB); give each service a database of its own"),
    ("the monolith's database", MINIMAL.replace("users_db", "monolith"),
     "plan.yaml:12: services.users.database: the database of users is the same as the monolith's database "
     "(both read CUTOVER_DSN_MONOLITH); give each service a database of its own"),
    ("the control database", MINIMAL.replace("users_db", "control"),
     "plan.yaml:12: services.users.database: the database of users is the same as the control database "
     "(both read CUTOVER_DSN_CONTROL); give each service a database of its own"),
    ("bad rule of a foreign key", with_line(ORDERS, "    foreign_keys: {a_fkey: cascade}"),
     "plan.yaml:7: services.orders.foreign_keys.a_fkey: this is not one of the choices; "
     "write one of 'drop' or 'loose'"),
    ("unknown stream", with_line(ORDERS, "    stream: trigger"),
     "plan.yaml:7: services.orders.stream: this is not one of the choices; "
     "write one of 'logical', 'outbox' or 'kafka'"),
    ("strong consistency without dual-write", with_line(ORDERS, "    consistency: strong"),
     "plan.yaml:7: services.orders.consistency: strong is a level of dual-write, and stream logical is always "
     "eventual; write `stream: outbox` (dual-write) with it, or `consistency: eventual`"),
    ("last-write-wins without a column", with_line("items: {}", "      x: {conflict: last-write-wins}"),
     "plan.yaml:11: services.orders.tables.x.conflict: last-write-wins needs a column to compare by; "
     "add `timestamp: <column>`, or choose source-wins or manual"),
    ("evidence older than its successor", with_line("items: {}", "      x: {reconcile: {every: 15m}}"),
     "plan.yaml:11: services.orders.tables.x.reconcile.max_lag: max_lag is shorter than every, so that evidence "
     "would be too old before its successor is due; make max_lag at least as long as every"),
    ("service name", MINIMAL.replace("  users:\n", "  User Service:\n"),
     "plan.yaml:11: services.'User Service': 'User Service' is not the name of a service; write at most 40 small "
     "letters, digits and `_` that begin with a letter, as in trading_engine"),
    ("service name that is too long", MINIMAL.replace("  users:\n", f"  {'u' * 41}:\n"),
     f"plan.yaml:11: services.{'u' * 41}: '{'u' * 41}' is not the name of a service; write at most 40 small letters, "
     "digits and `_` that begin with a letter, as in trading_engine"),
    ("service named like a reverse stream", MINIMAL.replace("  users:\n", "  orders_reverse:\n"),
     "plan.yaml:11: services.orders_reverse: the name clashes with the reverse stream of orders; "
     "give the service a name that does not end in _reverse"),
    ("migration name", MINIMAL.replace("migration: shop", "migration: Shop"),
     "plan.yaml:1: migration: 'Shop' is not the name of a migration; write at most 40 small letters, digits and `-` "
     "that begin with a letter, as in ai-trader"),
    ("migration that is a number", MINIMAL.replace("migration: shop", "migration: 2024"),
     "plan.yaml:1: migration: this is not text; write text, in quotes if it looks like a number"),
    ("table of 64 bytes", MINIMAL.replace("users: {}", f"{'é' * 32}: {{}}"),
     f"plan.yaml:14: services.users.tables.{'é' * 32}: the name '{'é' * 32}' has 64 bytes; "
     "PostgreSQL keeps 63 and drops the rest; write the name as the catalog has it"),
    ("table with NUL", MINIMAL.replace("users: {}", '"a\\0b": {}'),
     "plan.yaml:14: services.users.tables.'a\\x00b': the name holds a NUL character; "
     "PostgreSQL allows none; write the name as the catalog has it"),
    ("table without its schema", MINIMAL.replace("users: {}", ".users: {}"),
     "plan.yaml:14: services.users.tables.'.users': '.users' lacks its schema; write `table` or `schema.table`"),
    ("empty table name", MINIMAL.replace("users: {}", "'': {}"),
     "plan.yaml:14: services.users.tables.'': the name is empty; write the name as the catalog has it"),
    ("key that is no text", MINIMAL.replace("users: {}", "true: {}"),
     "plan.yaml:14: services.users.tables: the key 'true' is not text; "
     "write a key that is text, in quotes if need be"),
    ("an item of the programme as a task", MINIMAL + "tasks:\n  tables_archived: {owner: a}\n",
     "plan.yaml:16: tasks.tables_archived: this item is checked by the programme, with evidence, and not by a "
     "person; choose another name for a task of your own"),
    ("compress below one", MINIMAL + "compress: 0.5\n",
     "plan.yaml:15: compress: the number is too small; write at least 1.0"),
    ("a tag", MINIMAL + "timezone: !!python/object:os.system UTC\n",
     "plan.yaml:15: timezone: the tag 'tag:yaml.org,2002:python/object:os.system' is not allowed; "
     "write the value without a tag"),
    ("a list at the top", "- a\n- b\n",
     "plan.yaml:1: YAML: the file holds a list where a mapping has to be; "
     "write a YAML file; docs/plan.md and examples/ai_trader/plan.yaml show how"),
    ("not YAML", "migration: shop\nservices: {orders: [}\n",
     "plan.yaml:2: YAML: this is not YAML: expected the node content, but found '}'; "
     "mend this line or the one before it"),
    ("a tab", "migration: shop\nmonolith:\n\tdatabase: m\n",
     "plan.yaml:3: YAML: this is not YAML: found character '\\t' that cannot start any token; "
     "mend this line or the one before it"),
    ("empty", "",
     "plan.yaml:1: YAML: the file is empty; "
     "write a YAML file; docs/plan.md and examples/ai_trader/plan.yaml show how"),
    ("only comments", "# a plan\n",
     "plan.yaml:1: YAML: the file is empty; "
     "write a YAML file; docs/plan.md and examples/ai_trader/plan.yaml show how"),
    ("two documents", "migration: a\n---\nmigration: b\n",
     "plan.yaml:2: YAML: this is not YAML: but found another document; mend this line or the one before it"),
    ("a value that contains itself", "migration: &a [*a]\n",
     "plan.yaml:1: YAML: the values are nested too deeply, or contain themselves; "
     "write a YAML file; docs/plan.md and examples/ai_trader/plan.yaml show how"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_mistake_is_told_with_its_line_and_remedy(text: str, line: str) -> None:
    with pytest.raises(PlanError) as raised:
        load_text(text)
    assert line in str(raised.value).splitlines()


def test_all_problems_are_listed_at_once_in_the_order_of_the_lines() -> None:
    text = MINIMAL.replace("users_db", "monolith") + "compres: 2\nthresholds: {mismatch_rate: 1}\ntimezone: x\n"
    _, findings = examine(text)
    assert [(f.line, f.field) for f in findings] == [
        (12, "services.users.database"),
        (15, "compres"),
        (16, "thresholds.mismatch_rate"),
        (17, "timezone"),
    ]


def test_a_missing_dsn_is_told_at_its_database_beside_other_problems() -> None:
    plan, findings = examine(MINIMAL + "compres: 2\n", has_dsn=lambda name: name != "users_db")
    assert plan is None
    assert [str(f) for f in findings] == [
        "plan.yaml:12: services.users.database: database users_db has no DSN; set CUTOVER_DSN_USERS_DB "
        "(or CUTOVER_DSN_USERS_DB_FILE) in the environment, or a line in .cutover/env",
        "plan.yaml:15: compres: unknown key; did you mean compress?",
    ]
    plan, findings = examine(MINIMAL, has_dsn=lambda name: name != "monolith")
    assert plan is not None
    assert [(f.line, f.field) for f in findings] == [(3, "monolith.database")]


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://u:hunter2@host/db",
        "host=h password=hunter2",
        "'postgres://u:hunter2@h'",
        "[postgres://u:hunter2@h]",
    ],
)
def test_a_dsn_in_a_plan_is_refused_and_never_repeated(value: str) -> None:
    for text in (
        MINIMAL.replace("users_db", value),
        MINIMAL + f"dual_write: {{at_least: {value}}}\n",
        MINIMAL + f"timezone: {value}\n",
        MINIMAL.replace("  users:\n", f"  ? {value}\n  :\n"),
    ):
        _, findings = examine(text, has_dsn=lambda name: False)
        assert any("hunter2" not in str(f) for f in findings)
        assert not [str(f) for f in findings if "hunter2" in str(f)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "1: file: there is no such file"),
        (b"\xff\xfem\x00i\x00", "1: file: the file is not UTF-8 text"),
        (b"migration: a\nx: \xe9\n", "2: file: the file is not UTF-8 text"),
        (b"\x7fELF\x00\x01", "1: file: the file is binary, not text"),
        (b"a: 1\nb: \x01\n", "2: YAML: the file holds a control character"),
        (b"a: " + b"1" * 1_000_001, "1: YAML: the text has more than 1000000 characters"),
        (b"[" * 3_000, "1: YAML: the values are nested too deeply"),
        (b"a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + b"".join(
            b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9)) for c in range(97, 106)
        ), "1: YAML: aliases expand to more than 200000 values"),
    ],
    ids=["missing", "utf-16", "latin-1", "binary", "control character", "huge", "deep", "many aliases"],
)  # fmt: skip
def test_a_file_that_is_no_plan_is_refused_plainly(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "plan.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}:{problem}")
    assert len(str(raised.value).splitlines()) == 1


def test_a_folder_and_an_impossible_path_are_refused_plainly(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="this is a folder"):
        load(tmp_path)
    with pytest.raises(PlanError, match="the file cannot be read"):
        load("a\0b")


@pytest.mark.parametrize(
    "name", ["Users", "select", 'q"uote', "naïve", "表", "my table", "a.b", "x.Y z", NAMES_63, f"{NAMES_63}.{NAMES_63}"]
)
def test_odd_table_names_are_kept_as_they_are(name: str) -> None:
    plan = load_text(MINIMAL.replace("users: {}", f"'{name}': {{}}"))
    assert list(plan.services["users"].tables) == [name]
    assert plan.owner(name) == "users"


def test_anchors_and_merge_keys_are_followed_with_own_keys_first() -> None:
    plan = load_text(
        MINIMAL.replace("users: {}", "users: &rules {conflict: manual, reconcile: {every: 1m, max_lag: 2m}}")
        + "      more: {<<: *rules, conflict: source-wins}\n      same: *rules\n"
    )
    tables = plan.services["users"].tables
    assert tables["same"] == tables["users"]
    assert (tables["more"].conflict, tables["more"].reconcile) == ("source-wins", tables["users"].reconcile)


def test_the_strategys_name_of_the_outbox_is_accepted() -> None:
    plan = load_text(with_line(ORDERS, "    stream: dual-write", "    consistency: strong"))
    assert (plan.services["orders"].stream, plan.services["orders"].consistency) == ("outbox", "strong")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load(path) == load_text(MINIMAL)
