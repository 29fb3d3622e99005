"""`cutover watch` as typed: one look with its exit status, lines of JSON, a screen, and a clean end by Ctrl-C."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest_asyncio

from cutover.control import plans
from cutover.monitor.findings import Finding
from cutover.monitor.permanent import Looked
from cutover.plan.dsn import variable
from cutover.postgres import fence
from tests.cli.conftest import hears_ctrl_c, typed
from tests.cli.test_screen import shown
from tests.monitor.conftest import Watched
from tests.monitor.conftest import env as env
from tests.monitor.conftest import watched as watched
from tests.switch.conftest import TABLES


@pytest_asyncio.fixture
async def surrounded(watched: Watched) -> dict[str, str]:
    """A registered migration, and the environment of somebody who has its DSNs."""
    await plans.register(watched.env.control, watched.env.plan, "alice")
    pair = watched.env.pair
    return {
        variable("monolith"): pair.monolith.dsn,
        variable(watched.env.service.database): pair.target.dsn,
        variable("control"): watched.env.control.database.dsn,
    }


async def test_one_look_ends_with_a_status_and_says_what_helps(watched: Watched, surrounded: dict[str, str]) -> None:
    async def look(*options: str) -> tuple[int, str]:
        result = await asyncio.to_thread(typed, "watch", "test", "--once", *options, env=surrounded)
        return result.exit_code, result.output

    status, output = await look()
    assert (status, "all is well" in output) == (0, True), output
    await watched.on("service", fence.open_sql(TABLES[:1]))
    status, output = await look()
    assert status == 1
    assert "take writes at both sides" in output
    assert "ENABLE ALWAYS TRIGGER" in output
    status, output = await look("--json")
    facts = json.loads(output)
    assert (status, facts["ok"]) == (1, False)
    assert {one["watch"] for one in facts["findings"]} == {"writable-side", "fence"}
    assert facts["services"][0]["writable"] == "monolith"
    status, output = await look("--service", "nobody")
    assert status == 2
    assert "nobody" in output


async def test_lines_show_an_alarm_and_its_end_and_ctrl_c_ends_them(
    watched: Watched, surrounded: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "cutover.cli.main", "watch", "test", "--json", "--every", "0.2"]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **surrounded},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hears_ctrl_c,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines = process.stdout

    async def until(ok: bool) -> None:
        while json.loads(await lines.readline())["ok"] is not ok:
            continue

    try:
        await asyncio.wait_for(until(True), 30)
        await watched.on("service", fence.open_sql(TABLES[:1]))
        await asyncio.wait_for(until(False), 10)
        await watched.on("service", fence.close_sql(TABLES[:1], always=True))
        await asyncio.wait_for(until(True), 10)
        process.send_signal(signal.SIGINT)
        _, told = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 130
        assert told.decode().startswith("stopped;")
        assert b"Traceback" not in told
    finally:
        if process.returncode is None:
            process.kill()


def test_the_screen_shows_the_worst_first_and_no_markup() -> None:
    from cutover.cli.watch import render

    looks = [
        Looked(
            "a[b]", [Finding("rogue-writer", "warning", "a[b]", "x", "it \x1b[2J wrote", "stop it")], True, "monolith"
        ),
        Looked("c", [Finding("slot", "critical", "c", "s", "slot is gone", "cutover doctor shop")], True, "service", 3),
        Looked("d"),
    ]
    text = shown(render("shop", looks, "the last look failed"))
    assert text[0] == "the last look failed"
    assert text[1].startswith("shop · 2 findings")
    assert text[2] == "critical slot · c: slot is gone"
    assert text[3].strip() == "→ cutover doctor shop"
    assert "a[b]: it \\x1b[2J wrote" in text[4]
    assert any("writable at the service, epoch 3" in one for one in text)
    assert any("not prepared yet" in one for one in text)


def test_looks_are_not_too_often() -> None:
    assert typed("watch", "test", "--every", "0.1").exit_code == 2
