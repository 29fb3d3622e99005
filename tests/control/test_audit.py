"""The audit log: append-only, chained, and in the transaction of what it records."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from cutover.control import audit, documents
from cutover.control.audit import Entry
from cutover.control.database import Control

M = "ai-trader"


async def write(control: Control, count: int, actor: str = "alice") -> None:
    for n in range(count):
        async with control.acting(actor, "did", migration=M, service="s", detail={"n": n}):
            pass


async def problems(control: Control) -> list[str]:
    async with control.connection() as connection:
        return await audit.verify(connection)


@asynccontextmanager
async def tampering(control: Control) -> AsyncIterator[asyncpg.Connection]:
    """A superuser who has switched the trigger off."""
    async with control.database.session() as connection:
        await connection.execute("ALTER TABLE control.audit DISABLE TRIGGER audit_append_only")
        yield connection


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE control.audit SET actor = 'mallory'",
        "DELETE FROM control.audit",
        "TRUNCATE control.audit",
        "DELETE FROM control.audit_head",
    ],
)
@pytest.mark.parametrize("role", ["origin", "replica"])
async def test_the_log_refuses_changes_even_to_its_owner(control: Control, statement: str, role: str) -> None:
    await write(control, 2)
    async with control.database.session(session_replication_role=role) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await connection.execute(statement)
    assert await problems(control) == []


async def test_a_changed_row_is_found(control: Control) -> None:
    await write(control, 5)
    async with tampering(control) as connection:
        await connection.execute("UPDATE control.audit SET actor = 'mallory' WHERE seq = 3")
    assert await problems(control) == ["audit row 3 was changed: its content does not give its hash"]


async def test_a_changed_detail_is_found(control: Control) -> None:
    await write(control, 5)
    async with tampering(control) as connection:
        await connection.execute("""UPDATE control.audit SET detail = '{"n": 2.0}' WHERE seq = 3""")
    assert await problems(control) == ["audit row 3 was changed: its content does not give its hash"]


async def test_a_removed_row_is_found_in_the_middle_and_at_the_end(control: Control) -> None:
    await write(control, 5)
    async with tampering(control) as connection:
        await connection.execute("DELETE FROM control.audit WHERE seq IN (2, 5)")
    found = await problems(control)
    assert "audit rows 2 to 2 are missing" in found
    assert "audit rows 5 to 5 are missing at the end" in found


async def test_rows_in_another_order_are_found(control: Control) -> None:
    await write(control, 5)
    async with tampering(control) as connection:
        await connection.execute("UPDATE control.audit SET seq = 100 WHERE seq = 2")
        await connection.execute("UPDATE control.audit SET seq = 2 WHERE seq = 3")
        await connection.execute("UPDATE control.audit SET seq = 3 WHERE seq = 100")
    found = await problems(control)
    assert any("does not follow" in problem for problem in found)
    assert any("was changed" in problem for problem in found)


async def test_an_inserted_row_is_found(control: Control) -> None:
    await write(control, 3)
    async with control.database.session() as connection:
        await connection.execute(
            "INSERT INTO control.audit"
            " SELECT 4, at, actor, action, migration, service, detail, trace_id, hash, sha256('x')"
            " FROM control.audit WHERE seq = 3"
        )
    assert any("was changed" in problem for problem in await problems(control))


async def test_writers_at_the_same_time_keep_the_chain_whole(control: Control) -> None:
    other = await Control.open(control.database)
    try:
        await asyncio.gather(*(write(side, 25, f"writer-{n}") for n in range(3) for side in (control, other)))
    finally:
        await other.close()
    assert await problems(control) == []
    async with control.connection() as connection:
        assert len(await audit.entries(connection, M, limit=1000)) == 150
        assert (await audit.head(connection))[0] == 150


async def test_a_verification_beside_writers_finds_nothing(control: Control) -> None:
    writing = asyncio.create_task(write(control, 60))
    while not writing.done():
        assert await problems(control) == []
    await writing


async def test_the_audit_row_and_the_state_stand_or_fall_together(control: Control) -> None:
    async def fails() -> None:
        async with control.acting("alice", "did", migration=M) as connection:
            await connection.execute("INSERT INTO control.stage (migration, stage) VALUES ($1, 'prepared')", M)
            raise LookupError

    with pytest.raises(LookupError):
        await fails()
    assert await control.fetchval("SELECT count(*) FROM control.stage") == 0
    assert await control.fetchval("SELECT count(*) FROM control.audit") == 0
    assert await problems(control) == []


async def test_a_row_carries_the_trace_that_is_current(control: Control) -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("switch") as span:
        await write(control, 1)
    await write(control, 1)
    async with control.connection() as connection:
        after, within = await audit.entries(connection, M)
    assert within.trace_id == f"{span.get_span_context().trace_id:032x}"
    assert after.trace_id == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(details=st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=4), min_size=1, max_size=3))
def test_any_detail_is_kept_whole_or_scrubbed_and_survives_json(details: list[dict[str, object]]) -> None:
    for detail in details:
        text = documents.dumps(detail)
        assert documents.dumps(json.loads(text)) == text
        assert "\x00" not in text


async def test_odd_details_hash_the_same_when_they_are_read_back(control: Control) -> None:
    odd: list[dict[str, object]] = [
        {"f": 1.0, "g": 0.1, "h": 1e300, "i": 5e-324, "j": -0.0, "k": 10**30},
        {"ü": "ß", "b": "\x00", "long key": "😀", "a": "\ud800", "A": '"\\\n'},
        {"nan": float("nan"), "inf": float("inf"), "nested": {"z": 1, "a": [1, {"c": None}]}},
        {},
    ]
    for detail in odd:
        async with control.connection() as connection:
            await audit.append(connection, Entry("a", "b", M, None, detail))
    async with control.database.session(
        TimeZone="Asia/Tokyo", DateStyle="German", extra_float_digits="0"
    ) as connection:
        assert await audit.verify(connection) == []


async def test_a_dsn_or_password_never_reaches_the_log(control: Control) -> None:
    detail = {
        "error": "could not connect to postgresql://joe:hunter2@db:5432/x?sslmode=require",
        "conninfo": "host=db password='hunter2' user=joe",
        "link": "https://example.org/runs/1",
    }
    async with control.acting("alice", "did", migration=M, detail=detail):
        pass
    async with control.connection() as connection:
        (row,) = await audit.entries(connection, M)
    assert "hunter2" not in str(row.detail)
    assert row.detail["link"] == "https://example.org/runs/1"
