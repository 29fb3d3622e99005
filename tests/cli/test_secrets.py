"""A DSN that the driver cannot read shows no part of itself: not on a screen, in a log, or in a chain of errors."""

import io
import logging
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError

from activities.errors import translated
from cutover.control.database import Control
from cutover.dualwrite.connections import Pools
from cutover.errors import ConfigError
from cutover.postgres.databases import Database
from cutover.settings import Settings
from cutover.telemetry.logs import configure_logging
from tests.cli.conftest import typed
from tests.plan.minimal import MINIMAL

SECRET = "hunter2"
#: In each of them the driver takes a part of the password for something else, or names what it could not read.
WRONG = [
    "postgresql://app:hunter2#rest@127.0.0.1:5432/shop",
    "postgresql://app:hunter2/rest@127.0.0.1:5432/shop",
    "postgresql://app:x@127.0.0.1:hunter2/shop",
    "postgresql://app:x@127.0.0.1:99999/hunter2",
    "postgresql://app:hunter2@[::1/shop",
    "postgresql://app:hunter2@" + "a" * 70 + ".example:5432/shop",
    "postgresql://app:x@127.0.0.1:5432/shop?sslmode=hunter2",
    "hunter2://app:x@127.0.0.1/shop",
    "host=127.0.0.1 password=hunter2",
]


async def _connect(database: Database) -> None:
    await database.connect()


async def _session(database: Database) -> None:
    async with database.session():
        pass


async def _control(database: Database) -> None:
    await Control.open(database)


async def _pool(database: Database) -> None:
    pools = Pools(application="shop", min_size=0, max_size=1, options={})
    await pools.acquire(database, 1.0)


async def _eager_pool(database: Database) -> None:
    pools = Pools(application="shop", min_size=1, max_size=1, options={})
    await pools.acquire(database, 1.0)


@pytest.mark.parametrize("dsn", WRONG)
@pytest.mark.parametrize("opens", [_connect, _session, _control, _pool, _eager_pool])
async def test_only_the_variable_is_named_wherever_a_connection_is_opened(
    dsn: str, opens: Callable[[Database], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    database = Settings({"CUTOVER_DSN_ORDERS_DB": dsn}).database("orders_db")
    with pytest.raises(ConfigError, match="CUTOVER_DSN_ORDERS_DB") as caught:
        await opens(database)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert SECRET not in caplog.text
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        configure_logging(stream=stream)
        logging.getLogger("test").error("failed: %s", caught.value, exc_info=caught.value)
        with pytest.raises(ApplicationError) as told, translated():
            await opens(database)
    finally:
        root.handlers[:], root.level = before, level
    assert "failed" in stream.getvalue()
    assert SECRET not in stream.getvalue()
    assert (told.value.type, told.value.non_retryable) == ("ConfigError", True)
    assert SECRET not in "".join(traceback.format_exception(told.value))


async def test_a_wrong_option_of_the_callers_pool_is_not_called_a_wrong_dsn() -> None:
    pools = Pools(application="shop", min_size=5, max_size=1, options={})
    with pytest.raises(ValueError, match="max_size"):
        await pools.acquire(Database("orders_db", "postgresql://app@127.0.0.1/shop"), 1.0)


@pytest.mark.parametrize("dsn", WRONG)
@pytest.mark.parametrize("command", ["history", "doctor", "reconcile"])
def test_a_command_names_the_variable_and_ends_in_status_2(command: str, dsn: str) -> None:
    ended = typed(command, "shop", env={"CUTOVER_DSN_CONTROL": dsn})  # `typed` looks for the secret
    assert ended.exit_code == 2
    assert "CUTOVER_DSN_CONTROL" in ended.stderr


def test_preflight_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(MINIMAL)
    env = {f"CUTOVER_DSN_{name}": WRONG[0] for name in ("MONOLITH", "ORDERS_DB", "USERS_DB")}
    ended = typed("preflight", str(tmp_path / "plan.yaml"), "--sample", "0", env=env)
    assert ended.exit_code == 1, ended.output  # a database that cannot be reached is a finding
    assert "CUTOVER_DSN_MONOLITH" in ended.output


def test_the_worker_names_the_variable_and_ends(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "workers"],
        env={"CUTOVER_DSN_CONTROL": WRONG[0], "CUTOVER_ENV_FILE": str(tmp_path / "none"), "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "CUTOVER_DSN_CONTROL" in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
