"""How a switch ends stands in one commit with its state; what it decides and does stands in the audit log."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cutover.control import audit, switches
from cutover.errors import Unreachable
from cutover.switch import gates, reverse, section
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchOutcome
from tests.switch.conftest import Work, order

Advance = Callable[..., Awaitable[switches.SwitchRow]]


def after_done(monkeypatch: pytest.MonkeyPatch, then: Callable[[], Awaitable[None]]) -> None:
    """Something befalls the worker right after the commit of state `done`."""
    original: Advance = switches.advance

    async def advance(control: Any, row: Any, to_state: Any, **keywords: Any) -> switches.SwitchRow:
        result = await original(control, row, to_state, **keywords)
        if to_state == "done":
            await then()
        return result

    monkeypatch.setattr(switches, "advance", advance)


def whole(outcome: SwitchOutcome) -> bool:
    return outcome.result == "done" and not outcome.recovered and outcome.pause_ms > 0 and bool(outcome.steps)


async def test_a_worker_killed_right_after_the_end_loses_no_figure_of_the_pause(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        after_done(patch, hang)
        killed = asyncio.create_task(section.run(env, request, lambda _: None))
        await asyncio.wait_for(reached.wait(), 20)
        killed.cancel()
        await asyncio.gather(killed, return_exceptions=True)
    assert whole(await section.run(env, request, lambda _: None))
    (recorded,) = await switches.outcomes(env.control, "test")
    assert whole(SwitchOutcome.model_validate(recorded))


async def test_a_lost_answer_to_the_end_gives_the_figures_that_were_recorded(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")

    async def lose() -> None:
        raise Unreachable("the answer is lost")

    after_done(monkeypatch, lose)
    assert whole(await section.run(env, order(env, "service"), lambda _: None))


async def test_every_decision_and_effect_of_a_switch_has_its_row(env: SwitchEnvironment, work: Work) -> None:
    for _ in range(2):
        await gates.measure(env, "service")
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    await section.run(env, request, lambda _: None)
    async with env.control.connection() as connection:
        rows = await audit.entries(connection, "test")
        assert await audit.verify(connection) == []
    rows.reverse()
    noted = [row.detail["database"] for row in rows if row.action == "server.noted"]
    assert sorted(noted) == sorted([env.pair.monolith.name, env.pair.target.name]), "once for each server"
    wanted = ["switch.attempt", "switch.begin", "switch.fenced", "switch.journaled", "route.flipped", "switch.done"]
    assert [row.action for row in rows if row.action in wanted] == wanted
    (attempt,) = [row for row in rows if row.action == "switch.attempt"]
    assert attempt.detail["token"] == (await switches.settled(env.control, "test", env.pair.service)).token
