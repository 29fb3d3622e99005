"""What `make bench-switch` makes of its measurements."""

import asyncio
import json
from typing import Any

import pytest

from bench import switch_figures
from bench.switch_figures import Measured, percentile
from bench.switch_traffic import Holds, Traffic, lost
from cutover.postgres.databases import Database
from cutover.switch.models import StepTiming, SwitchOutcome
from cutover.switch.steps import SECTION


def outcome(pause: float = 40.0, write_pause: float = 30.0, flip: float = 5.0) -> SwitchOutcome:
    return SwitchOutcome(
        result="done", switch_id="one", service="s", from_side="monolith", to_side="service", epoch=1, pause_ms=pause,
        write_pause_ms=write_pause,
        steps=[StepTiming(name=name, ms=flip if name == "flip" else 1.0) for name in SECTION],
    )  # fmt: skip


def measured(stream: str = "logical", **given: Any) -> Measured:
    found = Measured(stream, outcomes=[outcome()], floors=[5.0], traffic=Traffic(waits=[41.0], held=[39.0]))
    for name, value in given.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(("percent", "value"), [(50, 100), (95, 190), (99, 198), (100, 200)])
def test_a_percentile_is_the_value_at_its_rank(percent: float, value: float) -> None:
    assert percentile(range(200, 0, -1), percent) == value


def test_a_rank_between_two_values_is_the_higher_one() -> None:
    assert percentile([1.0, 2.0, 3.0], 50) == 2


def test_the_percentiles_of_one_value_are_that_value_and_there_are_none_of_nothing() -> None:
    assert [percentile([7.0], percent) for percent in (0, 50, 99)] == [7.0, 7.0, 7.0]
    with pytest.raises(ValueError, match="no switch was measured"):
        percentile([], 50)


def test_the_write_pause_ends_with_the_commit_of_the_unfence_and_the_announced_one_with_the_flip() -> None:
    found = measured(outcomes=[outcome(pause=40, write_pause=30, flip=5)])
    assert found.pauses == [25]
    assert found.announced == [40]


def test_an_attempt_that_was_taken_back_counts_as_a_pause_for_clients_and_one_that_did_not_begin_does_not() -> None:
    undone = [outcome(pause=pause).model_copy(update={"result": "undone", "steps": []}) for pause in (900.0, 0.0)]
    found = measured(undone=undone)
    assert found.announced == [40, 900]
    assert found.pauses == [25]


def test_of_two_measures_of_a_wait_the_longer_one_counts() -> None:
    assert measured(traffic=Traffic(waits=[90.0])).figures()["wait_p50_ms"] == 90
    assert measured(traffic=Traffic(waits=[1.0])).figures()["wait_p50_ms"] == 40
    assert measured(traffic=Traffic()).figures()["wait_p50_ms"] == 40


def test_the_last_line_holds_the_worse_stream_of_each_figure_and_the_sum_of_what_is_counted() -> None:
    slow = measured("outbox", outcomes=[outcome(write_pause=105)], floors=[50.0], traffic=Traffic(failures={"E": 2}))
    quick = measured(lost=1)
    printed = switch_figures.report([slow, quick])
    assert json.loads(printed.splitlines()[-1]) == {
        "pause_p50_ms": 100, "pause_p99_ms": 100, "pause_to_floor": 5, "wait_p50_ms": 41, "wait_p99_ms": 41,
        "failed_requests": 2, "lost_writes": 1, "cycles": 2,
    }  # fmt: skip
    for step in SECTION:
        assert f"step {step}" in printed


@pytest.mark.parametrize("bad", [{"lost": 1}, {"differing": 1}, {"traffic": Traffic(failures={"Fenced": 1})}])
def test_a_run_is_not_whole_where_anything_was_lost_failed_or_differs(bad: dict[str, Any]) -> None:
    assert switch_figures.whole([measured(), measured()])
    assert not switch_figures.whole([measured(), measured(**bad)])


async def test_how_long_a_request_was_held_is_told_to_its_own_task_once() -> None:
    holds = Holds()

    async def request(seconds: float | None) -> tuple[float | None, float | None]:
        if seconds is not None:
            holds.waited(seconds)
        await asyncio.sleep(0)
        return holds.taken(), holds.taken()

    told = await asyncio.gather(*(request(seconds) for seconds in (1.0, None, 3.0)))
    assert told == [(1.0, None), (None, None), (3.0, None)]
    assert holds.longest_wait_ms == 3000


async def test_what_was_acknowledged_and_is_not_there_is_lost_and_what_failed_is_not(monolith_db: Database) -> None:
    promised = Traffic(last=[3, 2], unacknowledged=[[2], []], versions={0: 4, 20: 1})
    async with monolith_db.session() as connection:
        await connection.execute(
            "CREATE TABLE trades (writer int, number bigint); CREATE TABLE positions (id bigint, version bigint);"
            "INSERT INTO trades VALUES (0, 1), (0, 3), (1, 1), (1, 2); INSERT INTO positions VALUES (0, 4), (20, 2)"
        )
        assert await lost(connection, promised) == 0
        await connection.execute("DELETE FROM trades WHERE (writer, number) = (1, 1)")
        assert await lost(connection, promised) == 1
        await connection.execute("UPDATE positions SET version = 3 WHERE id = 0; DELETE FROM positions WHERE id = 20")
        assert await lost(connection, promised) == 3
