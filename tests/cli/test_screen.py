"""The screen: what it shows of services, gates and outages, and how it fits a terminal."""

import asyncio
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console
from temporalio.service import RPCError, RPCStatusCode

from cutover.cli import status as command
from cutover.cli.screen import Overview, Screen, ServiceLine, render, since
from cutover.cli.status import Watching
from cutover.errors import Unreachable
from workflows.messages import PastApproval, Refusal
from workflows.status import GateStatus, State, Status
from workflows.status import command as command_of

NOW = datetime.now(UTC)


def run(name: str, state: State = "WAITING", **fields: Any) -> Status:
    run_id = f"migration/shop/{name}" if name else "migration/shop"
    values: dict[str, Any] = {
        "workflow": "Switchover",
        "workflow_id": run_id,
        "migration": "shop",
        "phase": "soak",
        "state": state,
        "waiting_for": f"something of {name}, since then",
        "since": datetime.now(UTC) - timedelta(minutes=3),
        "commands": [command_of(run_id, "pause", "Hold before the next step")],
        **fields,
    }
    return Status(**values)


def line(service: str = "orders", **fields: Any) -> ServiceLine:
    values: dict[str, Any] = {
        "stage": "ready", "writable": "monolith", "reads": "monolith", "epoch": 3, "paused": False, "differences": 0,
        "oldest_pass_seconds": 12.0, **fields,
    }  # fmt: skip
    return ServiceLine(service=service, **values)


def gate(**fields: Any) -> GateStatus:
    values: dict[str, Any] = {
        "name": "write", "question": "Make it writable?", "opened": NOW, "needs_evidence": True, "required": 2,
        "evidence": "k7f2", **fields,
    }  # fmt: skip
    return GateStatus(**values)


def shown(what: Any, width: int = 160, height: int = 400) -> list[str]:
    console = Console(width=width, height=height, force_terminal=False)
    with console.capture() as captured:
        console.print(what)
    return [text.rstrip() for text in captured.get().splitlines()]


def test_services_show_lag_differences_and_cases_with_the_command() -> None:
    found = Overview("shop", [run("")], [], [line(lag_seconds=0.25, differences=4, cases=2), line("users[x]")])
    text = "\n".join(shown(render(found)))
    row = next(one for one in text.splitlines() if "orders" in one)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "orders", "ready", "monolith", "monolith", "3", "0.25 s", "4", "2", "12 s ago",
    ]  # fmt: skip
    assert "users[x]" in text
    assert "cases that wait for a person or the next pass: 2; see cutover conflicts list shop" in text
    assert text.splitlines()[0] == "shop · soak · WAITING"
    late = "\n".join(shown(render(Overview("shop", [run("")], [], [line(cases=2, cases_overdue=1)]))))
    assert "pass: 2, 1 of them OVERDUE; see cutover conflicts list shop" in late


def test_a_run_shows_since_when_it_waits_and_every_command_that_answers() -> None:
    opened = gate(
        ok=False,
        problems=["trades: 3 mismatched rows"],
        facts={"lag": "0 s", "writable": "monolith, epoch 3"},
        approvals=[PastApproval(gate="write", by="alice", at=NOW)],
        note="the approval of bob expired",
    )
    run_id = "migration/shop/orders/switchover"
    one = run(
        "orders/switchover",
        gates=[opened],
        rollback=command_of(run_id, "rollback", "Go back"),
        rollback_note="Rollback possible now.",
        refused=[Refusal(at=NOW, action="approve", text="no gate")],
        progress={"soak samples": 7},
    )
    text = "\n".join(shown(render(Overview("shop", [one]))))
    for expected in (
        "waits for something of orders/switchover, since then (since 3.0 min)",
        f"Hold before the next step: cutover pause {run_id} --by YOU",
        f"Rollback possible now. cutover rollback {run_id} --by YOU",
        "gate write: Make it writable?",
        "evidence k7f2 (does not hold)",
        "! trades: 3 mismatched rows",
        "lag: 0 s; writable: monolith, epoch 3",
        "1 of 2 approvals (alice)",
        "the approval of bob expired",
        "refused: no gate",
        "soak samples: 7",
    ):
        assert expected in text, expected


def test_what_needs_a_person_comes_first() -> None:
    runs = [
        run("", "RUNNING"),
        run("a", "WAITING"),
        run("b", "WAITING", gates=[gate()]),
        run("c", "NEEDS_ATTENTION", attention="preflight: refused"),
        run("d", "DONE"),
        run("e", "PAUSED"),
    ]
    titles = [text.split("·")[0].strip("╭─ ") for text in shown(render(Overview("shop", runs))) if "╭" in text]
    assert titles == [f"migration/shop/{name}" for name in "ceba"] + ["migration/shop", "migration/shop/d"]


def many() -> Overview:
    runs = [run("", "RUNNING"), *(run(f"s{n}/switchover", gates=[gate()]) for n in range(12))]
    runs.append(run("bad", "NEEDS_ATTENTION", attention="it failed"))
    return Overview("shop", runs, ["migration/shop/silent"], [line(f"s{n}") for n in range(3)])


@pytest.mark.parametrize("width", [60, 100, 200])
@pytest.mark.parametrize("height", [3, 8, 12, 20, 24, 40, 60, 200])
def test_a_screen_fits_its_terminal_and_hides_the_least_important(width: int, height: int) -> None:
    text = shown(Screen(many(), "the control database does not answer"), width, height)
    assert len(text) < height
    assert all(len(one) <= width for one in text)
    assert text[0].startswith("the control database does not answer")
    if height >= 24:
        whole = "\n".join(text)
        assert "NEEDS_ATTENTION" in whole
        assert "silent: does not answer" in whole
        hidden = [n for n in range(12) if f"s{n}/switchover" not in whole]
        assert not hidden or "more; all of it: cutover status shop" in whole
    if height == 200:
        assert sum("╭" in one for one in text) == 14


def test_runs_without_room_for_a_panel_still_have_a_line_each() -> None:
    text = shown(Screen(many()), 120, 40)
    assert sum("╭" in one for one in text) >= 1
    assert any(one.startswith("WAITING migration/shop/s") and "waits for" in one for one in text)


async def test_an_outage_during_the_watch_is_shown_and_the_next_look_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    failing: dict[str, Exception] = {}

    async def runs(_client: Any, found: Overview, **_: Any) -> None:
        if "runs" in failing:
            raise failing["runs"]
        found.runs = [run("orders")]

    async def services(_opened: Any, found: Overview) -> None:
        if "services" in failing:
            raise failing["services"]
        found.services = [line(epoch=found.services[0].epoch + 1 if found.services else 1)]

    monkeypatch.setattr(command, "look_at_runs", runs)
    monkeypatch.setattr(command, "look_at_services", services)
    watching = Watching(None, None, "shop")  # type: ignore[arg-type]
    assert (await watching.look()).trouble == ""
    failing["services"] = Unreachable("control database 'control' cannot be reached: ConnectionError")
    screen = await watching.look()
    assert "services are as they were 0 s ago" in screen.trouble
    assert "'control' cannot be reached" in "\n".join(shown(screen))
    assert "migration/shop/orders" in "\n".join(shown(screen))
    failing["runs"] = RPCError("gone", RPCStatusCode.UNAVAILABLE, b"")
    assert "the Temporal server does not answer" in (await watching.look()).trouble
    failing.clear()
    recovered = await watching.look()
    assert recovered.trouble == ""
    assert recovered.found is not None
    assert recovered.found.services[0].epoch == 2


@pytest.mark.parametrize("terminal", [True, False])
async def test_the_watch_looks_again_until_it_is_stopped(terminal: bool) -> None:
    looks = []

    class Looking(Watching):
        async def look(self) -> Screen:
            looks.append(1)
            self.found = Overview("shop", [run(f"look{len(looks)}")])
            return Screen(self.found)

    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, height=20)
    watching = asyncio.create_task(command._watch(Looking(None, None, "shop"), 0.01, console))  # type: ignore[arg-type]
    while len(looks) < 4:
        assert not watching.done()
        await asyncio.sleep(0.01)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert "migration/shop/look1" in out.getvalue()
    assert "migration/shop/look3" in out.getvalue()


def test_an_age_has_one_unit() -> None:
    assert [since(datetime.now(UTC) - timedelta(seconds=s)) for s in (5, 90, 7200, 200_000)] == [
        "5 s", "1.5 min", "2.0 h", "2.3 d",
    ]  # fmt: skip
