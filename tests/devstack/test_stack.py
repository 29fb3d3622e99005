"""The development stack as a person uses it: `cutover dev`, in processes of their own, on ports of its own."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from cutover.devstack.cluster import free_port
from cutover.devstack.processes import command_line, wait_until
from cutover.devstack.stack import Stack
from cutover.settings import Settings

COMMAND = [sys.executable, "-c", "from cutover.cli.dev import app; app()"]


@dataclass
class Dev:
    """`cutover dev` in a home of its own."""

    home: Path
    base: int

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "CUTOVER_DEV_HOME": str(self.home), "CUTOVER_DEV_PORT_BASE": str(self.base)}

    @property
    def stack(self) -> Stack:
        """The same stack without a process for the command, which is quicker."""
        return Stack(self.environ, say=lambda text: None)

    @property
    def data(self) -> Path:
        return self.stack.home.data

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        out, err = process.communicate(timeout=90)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def up(self) -> dict[str, int]:
        """The pids by server after an `up`, all of them running."""
        self.stack.up()
        servers = self.stack.status()
        assert [server.state for server in servers] == ["running"] * 3
        return {server.name: server.pid for server in servers if server.pid}

    def settings(self) -> Settings:
        return Settings.from_environment({"CUTOVER_ENV_FILE": str(self.home / "env")})


def four_free_ports() -> int:
    for _ in range(100):
        base = free_port()
        if base < 65000 and all(_is_free(base + offset) for offset in range(4)):
            return base
    raise AssertionError("no four free ports in a row")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    stack = Dev(tmp_path_factory.mktemp("dev") / "home", four_free_ports())
    try:
        yield stack
    finally:
        stack.run("reset", "--yes")


def test_up_twice_leaves_the_running_servers_alone(dev: Dev) -> None:
    assert dev.run("up").returncode == 0
    shown = dev.run("status", "--json")
    assert shown.returncode == 0
    first = {server["name"]: server["pid"] for server in json.loads(shown.stdout)["servers"]}
    assert len(first) == 3
    assert all(first.values())
    assert dev.run("up").returncode == 0
    assert dev.up() == first


async def test_the_env_file_is_private_and_opens_every_database(dev: Dev) -> None:
    dev.up()
    assert stat.S_IMODE((dev.home / "env").stat().st_mode) == 0o600
    settings = dev.settings()
    for name in ("monolith", "trading_engine_db", "ai_decision_db", "analytics_db", "api_gateway_db", "control"):
        async with settings.database(name).session() as connection:
            assert await connection.fetchval("SELECT current_database()") == name
            assert await connection.fetchval("SHOW wal_level") == "logical"
            assert await connection.fetchval("SHOW fsync") == "on"


async def test_nobody_gets_in_without_the_password(dev: Dev) -> None:
    dev.up()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host="127.0.0.1", port=dev.base + 2, user="postgres", password="guess")


@pytest.mark.parametrize("victim", ["temporal", "monolith", "services"])
def test_up_repairs_a_killed_server(dev: Dev, victim: str) -> None:
    before = dev.up()
    os.kill(before[victim], signal.SIGKILL)
    assert wait_until(lambda: not command_line(before[victim]), 10)
    assert {server.name for server in dev.stack.status() if server.state == "stopped"} == {victim}
    after = dev.up()
    assert after[victim] != before[victim]
    assert {name: pid for name, pid in after.items() if name != victim} == {
        name: pid for name, pid in before.items() if name != victim
    }


def test_up_repairs_a_pid_file_that_names_another_program(dev: Dev) -> None:
    """After a restart of the machine the number may belong to anybody, here to this test."""
    before = dev.up()
    data = dev.data
    noted = (data / "monolith/data/postmaster.pid").read_text().splitlines()
    dev.stack.down()
    (data / "monolith/data/postmaster.pid").write_text("\n".join([str(os.getpid()), *noted[1:]]) + "\n")
    (data / "temporal/temporal.pid").write_text(str(os.getpid()))
    after = dev.up()
    assert os.getpid() not in after.values()
    assert after["monolith"] != before["monolith"]


def test_two_ups_at_once_make_one_stack(dev: Dev) -> None:
    dev.stack.down()
    both = [dev.start("up"), dev.start("up")]
    for process in both:
        _, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
    assert dev.up() == dev.up()


def test_down_leaves_no_process_and_the_data_stays(dev: Dev) -> None:
    pids = dev.up()
    assert dev.run("down").returncode == 0
    assert [pid for pid in pids.values() if command_line(pid)] == []
    assert list(_processes_naming(str(dev.data))) == []
    assert dev.run("down").returncode == 0
    assert dev.run("status").returncode == 3
    assert (dev.data / "monolith/data/PG_VERSION").exists()


def test_a_port_in_use_is_named_with_the_way_out_and_nothing_is_started(dev: Dev) -> None:
    dev.stack.down()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", dev.base + 3))
        other.listen()
        done = dev.run("up")
    assert done.returncode == 2
    assert f"port in use by another program: {dev.base + 3} (PostgreSQL services)" in done.stderr
    assert "CUTOVER_DEV_PORT_BASE" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(_processes_naming(str(dev.data))) == []


def test_a_wrong_port_base_is_refused_in_words(dev: Dev) -> None:
    done = Dev(dev.home, 70000).run("status")
    assert done.returncode == 2
    assert "CUTOVER_DEV_PORT_BASE=70000" in done.stderr


def test_reset_asks_first_and_then_deletes_everything(dev: Dev) -> None:
    dev.up()
    data = dev.data
    assert dev.run("reset").returncode == 2
    assert data.exists()
    assert dev.run("reset", "--yes").returncode == 0
    assert not data.exists()
    assert not (dev.home / "env").exists()
    assert list(_processes_naming(str(data))) == []


def _processes_naming(text: str) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        if any(text in part for part in command_line(int(entry.name))):
            yield int(entry.name)
