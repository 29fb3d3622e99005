"""Nothing of a row and no DSN in logs, spans and failures."""

import io
import json
import logging
from collections.abc import Iterator

import asyncpg
import pytest
from temporalio.api.failure.v1 import Failure
from temporalio.exceptions import ApplicationError

from cutover.errors import Unreachable
from cutover.postgres.databases import Database
from cutover.telemetry.logs import configure_logging
from cutover.telemetry.redaction import describe
from cutover.telemetry.temporal import data_converter

#: Put together here, so that a traceback's source lines do not hold it.
EMAIL = "@".join(["a", "b.example"])
DSN = "postgresql://app:hunter2@db.example:5432/shop"


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


async def violation(database: Database) -> asyncpg.PostgresError:
    """A driver's error that names the value of a row."""
    async with database.session() as connection:
        await connection.execute("CREATE TABLE people (email text PRIMARY KEY)")
        await connection.execute("INSERT INTO people VALUES ($1)", EMAIL)
        with pytest.raises(asyncpg.UniqueViolationError) as caught:
            await connection.execute("INSERT INTO people VALUES ($1)", EMAIL)
    assert EMAIL in str(caught.value)
    return caught.value


async def test_a_drivers_error_is_described_by_kind_and_names_alone(monolith_db: Database) -> None:
    error = await violation(monolith_db)
    assert describe(error) == "UniqueViolationError (SQLSTATE 23505, public.people.people_pkey)"
    assert describe(RuntimeError(f"insert: {error}")).startswith("insert: duplicate key")
    assert EMAIL not in describe(RuntimeError(f"insert: {error}"))


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("as_json", [True, False])
async def test_logs_hold_neither_values_nor_dsns(monolith_db: Database, as_json: bool) -> None:
    stream = io.StringIO()
    configure_logging(as_json, stream=stream)
    log = logging.getLogger("somebody.else")
    error = await violation(monolith_db)
    log.warning("cannot reach %s with password=hunter2", DSN)
    log.error("failed: %s after %d tries", error, 3)
    try:
        raise Unreachable(f"database at {DSN} is away") from error
    except Unreachable:
        log.exception("while copying")
    log.info("%d of nothing", "wrong")
    text = stream.getvalue()
    for secret in ("hunter2", "db.example", EMAIL):
        assert secret not in text
    assert "after 3 tries" in text
    assert "while copying" in text
    assert "test_redaction.py" in text
    assert "UniqueViolationError" in text
    if as_json:
        assert {json.loads(line)["level"] for line in text.splitlines()} == {"warning", "error", "info"}


async def test_failures_enter_a_history_without_values(monolith_db: Database) -> None:
    error = await violation(monolith_db)
    converter = data_converter()
    wrapped = ApplicationError(f"step failed at {DSN}: {error}", type="Step")
    wrapped.__cause__ = error
    failure = Failure()
    await converter.encode_failure(wrapped, failure)
    text = str(failure)
    for secret in ("hunter2", EMAIL):
        assert secret not in text
    assert failure.application_failure_info.type == "Step"
    assert "UniqueViolationError (SQLSTATE 23505" in failure.cause.message
