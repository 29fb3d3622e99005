"""Stages, reports, conflicts, tasks, summaries: what is kept, and that keeping it twice is keeping it once."""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cutover.control import audit, conflicts, reports, stages, summaries, tasks
from cutover.control.database import Control
from cutover.control.reports import Difference, TableReport
from cutover.errors import Refused, Unreachable
from cutover.postgres.databases import Database
from tests.control.plans import plan
from tests.servers import Clusters

M, S = "ai-trader", "trading_engine"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def report(**changes: Any) -> TableReport:
    values: dict[str, Any] = {
        "migration": M,
        "service": S,
        "table": "trades",
        "direction": "forward",
        "started_at": NOW,
        "finished_at": NOW,
        "rows_source": 10,
        "rows_target": 10,
        "rate": 0.0,
        "seed_rate": 0.0,
        "duration_ms": 12.5,
        "plan_hash": "a" * 64,
        "complete": True,
    }
    return TableReport(**{**values, **changes})


async def actions(control: Control) -> list[str]:
    async with control.connection() as connection:
        assert await audit.verify(connection) == []
        return [row.action for row in reversed(await audit.entries(connection, M))]


async def test_a_stage_is_set_once_and_its_history_is_in_the_log(control: Control) -> None:
    await stages.set_stage(control, M, None, "prepared")
    await stages.set_stage(control, M, S, "ready", {"tables": 2})
    await stages.set_stage(control, M, S, "ready", {"tables": 2})
    await stages.set_stage(control, M, S, "switched", actor="switchover")
    found = await stages.get_stages(control, M)
    assert {service: row.stage for service, row in found.items()} == {None: "prepared", S: "switched"}
    assert await actions(control) == ["stage"] * 3
    async with control.connection() as connection:
        newest = (await audit.entries(connection, M))[0]
    assert (newest.actor, newest.detail["from"], newest.detail["to"]) == ("switchover", "ready", "switched")


async def test_a_stage_of_the_wrong_level_is_refused(control: Control) -> None:
    with pytest.raises(Refused, match="'ready' is no stage of the migration"):
        await stages.set_stage(control, M, None, "ready")
    with pytest.raises(Refused, match="'prepared' is no stage of service trading_engine"):
        await stages.set_stage(control, M, S, "prepared")
    assert await stages.get_stages(control, M) == {}


async def test_the_newest_complete_report_counts_with_its_age(control: Control) -> None:
    first = await reports.record(control, report(mismatched=1))
    await reports.record(control, report(complete=False))
    found = await reports.latest(control, M, S, "trades")
    assert found is not None
    assert (found.id, found.differences, found.duration_ms, found.started_at) == (first, 1, 12.5, NOW)
    assert 0 <= found.age < 60
    unfinished = await reports.latest(control, M, S, "trades", complete=False)
    assert unfinished is not None
    assert not unfinished.complete
    assert await reports.latest(control, M, S, "trades", direction="reverse") is None
    await reports.record(control, report(table="positions"))
    assert [one.table for one in await reports.latest_of_all(control, M)] == ["positions", "trades"]


async def test_all_confirmed_differences_of_the_newest_report_are_open(control: Control) -> None:
    old = await reports.record(control, report(), [Difference("trades", "[0]", "extra", None, 1, True)])
    many = [Difference("trades", f"[{n}]", "missing", -n, None, n % 2 == 0) for n in range(12_000)]
    await reports.record(control, report(missing=2), [*many, *many[:10]])
    found = await reports.open_differences(control, M, S, limit=100_000)
    assert len(found) == 6_000
    assert found[0] == Difference("trades", "[0]", "missing", 0, None, True)
    assert len(await reports.open_differences(control, M, S, "trades", limit=5)) == 5
    assert await control.fetchval("SELECT count(*) FROM control.difference WHERE report_id = $1", old) == 1
    await reports.record(control, report())
    assert await reports.open_differences(control, M, S) == []


async def test_a_key_has_one_open_case_until_a_person_resolves_it(control: Control) -> None:
    key: dict[str, Any] = {"migration": M, "service": S, "table": "trades", "key_json": "[7]", "kind": "mismatched"}
    first = await conflicts.open_case(control, **key, rule="manual", detail={"source_hash": 1})
    assert await conflicts.open_case(control, **key, rule="manual", detail={"source_hash": 2}) == first
    (case,) = await conflicts.list_open(control, M)
    assert (case.id, case.seen, case.detail, case.resolved_at) == (first, 2, {"source_hash": 2}, None)
    with pytest.raises(Refused, match="give a name"):
        await conflicts.resolve(control, first, " ", "source kept")
    resolved = await conflicts.resolve(control, first, "alice", "source kept")
    assert await conflicts.resolve(control, first, "bob", "target kept") == resolved
    assert (resolved.resolved_by, resolved.resolution) == ("alice", "source kept")
    assert await conflicts.list_open(control, M, S) == []
    assert await conflicts.open_case(control, **key, rule="manual") != first
    with pytest.raises(Refused, match="no case 999"):
        await conflicts.resolve(control, 999, "alice", "x")
    assert await actions(control) == ["conflict.opened", "conflict.resolved", "conflict.opened"]


async def test_tasks_follow_the_plan_and_what_is_done_stays_done(control: Control) -> None:
    one = plan()
    await tasks.ensure(control, one)
    await tasks.ensure(control, one)
    (task,) = await tasks.pending(control, M, "preparation")
    assert (task.name, task.owner, task.duration) == ("tested_in_staging", "backend-team", timedelta(days=3))
    assert await tasks.pending(control, M, "cleanup") == []
    done = await tasks.complete(control, M, task.name, "alice", "run 42")
    assert await tasks.complete(control, M, task.name, "bob") == done
    assert (done.done_by, done.evidence) == ("alice", "run 42")
    await tasks.ensure(control, one)
    assert await tasks.pending(control, M) == []
    with pytest.raises(Refused, match="no task 'nope'; its tasks: tested_in_staging"):
        await tasks.complete(control, M, "nope", "alice")
    await tasks.ensure(control, one.model_copy(update={"tasks": {}}))
    assert await tasks.every(control, M) == []
    assert await actions(control) == ["tasks.ensured", "task.completed", "tasks.ensured"]


async def test_a_summary_of_the_same_hour_is_replaced(control: Control) -> None:
    first = await summaries.record(control, M, S, {"lag_seconds": 1})
    second = await summaries.record(control, M, S, {"lag_seconds": 2})
    rows = await summaries.latest(control, M, S, limit=5)
    assert rows[0] == second
    # Two rows only where the hour turned between the two calls.
    assert len(rows) == len({first.bucket_start, second.bucket_start})
    assert second.bucket_start.minute == second.bucket_start.second == 0
    await summaries.record(control, M, S, {}, every=timedelta(seconds=1))
    assert len(await summaries.latest(control, M, S, limit=5)) >= 1


async def test_a_server_that_lets_the_role_in_no_more_cannot_be_reached(control: Control) -> None:
    name = f"guest_{os.getpid()}"
    await control.execute(f"CREATE ROLE {name} LOGIN SUPERUSER")
    dsn = control.database.dsn.replace("postgres@", f"{name}@", 1)
    guest = await Control.open(Database("control", dsn))
    try:
        assert await guest.fetchval("SELECT 1") == 1
        await control.execute(f"ALTER ROLE {name} NOLOGIN")
        await control.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", name)
        for _ in range(2):  # the session that was ended, and the one that is not to be had
            with pytest.raises(Unreachable, match="control database 'control' cannot be reached"):
                await guest.fetchval("SELECT 1")
        await control.execute(f"ALTER ROLE {name} LOGIN")
        assert await guest.fetchval("SELECT 1") == 1
    finally:
        await guest.close()
        await control.execute(f"DROP ROLE {name}")


async def test_a_restarted_server_is_found_again_by_the_same_pool(control: Control, clusters: Clusters) -> None:
    await stages.set_stage(control, M, None, "prepared")
    clusters.services.kill9()
    with pytest.raises(Unreachable, match="control database 'control' cannot be reached"):
        await stages.get_stages(control, M)
    clusters.services.restart()
    assert (await stages.get_stages(control, M))[None].stage == "prepared"
