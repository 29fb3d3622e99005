"""What cleanup leaves behind: nothing of ours at the services' side, and no child without its parent."""

from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from cutover.archive import manifest
from cutover.archive import service as old_tables
from cutover.flags import store as flags
from cutover.monitor import baseline
from cutover.monitor.statistics import Collector
from cutover.postgres.applier import applier_session
from tests.activities.conftest import SERVICE_DATABASES, Ground

OURS = """
SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'cutover'
UNION ALL SELECT 'trigger ' || t.tgname || ' on ' || t.tgrelid::regclass FROM pg_trigger t
    WHERE NOT t.tgisinternal AND t.tgname LIKE 'cutover%'
UNION ALL SELECT 'publication ' || pubname FROM pg_publication
UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
    WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()
UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin WHERE roname LIKE 'cutover%' || $1 || '%'
ORDER BY 1
"""


async def ours(ground: Ground, database: str) -> list[str]:
    mark = ground.services[0].rpartition("_")[2]
    return [row[0] for row in await ground.on(database, OURS, mark)]


async def switched(ground: Ground) -> None:
    """Every service at its own database, the reverse streams running."""
    await ground.prepare()
    await ground.replicate()
    for service in ground.services:
        await ground.switch(service)


async def a_repair_has_been_at_work(ground: Ground) -> None:
    """Its replication origin stays at the server."""
    service = ground.services[0]
    async with applier_session(ground.pair(service).monolith, service, "repair"):
        pass


async def test_nothing_of_ours_is_left_and_no_child_lacks_its_parent(ground: Ground) -> None:
    await switched(ground)
    await a_repair_has_been_at_work(ground)
    assert any("origin" in found for found in await ours(ground, "monolith"))
    await ground.on("accounts_db", "DELETE FROM users WHERE id = 7")
    for service in ground.services:
        done = await ground.do(ground.cleanup.drop_machinery, ground.ref(service))
        assert done.facts["schema cutover"] == "gone"
        await ground.do(ground.cleanup.drop_machinery, ground.ref(service))
    for database in SERVICE_DATABASES:
        assert await ours(ground, database) == [], database
    assert await ground.on("trading_db", "SELECT count(*) FROM trades WHERE user_id = 7") == [(0,)]
    # the deleted trades were themselves parents of rows at the third service
    orphans = "SELECT id FROM outcomes WHERE trade_id % 50 = 6"
    assert await ground.on("ledger_db", orphans) == []
    assert await ground.on("ledger_db", "SELECT count(*) FROM outcomes") == [(98,)]
    # the monolith's tables refuse writes until they are dropped
    left = await ours(ground, "monolith")
    assert [one for one in left if "trigger" not in one] == ["schema cutover"]
    assert [one for one in left if "loose" in one] == []
    assert len([one for one in left if "cutover_fence " in one]) == 3

    for service in ground.services:
        await ground.do(ground.cleanup.archive_tables, ground.ref(service))
    for service in ground.services:
        await ground.do(ground.cleanup.rename_tables, ground.ref(service))
    for service in ground.services:
        await ground.do(ground.cleanup.drop_tables, ground.ref(service))
    assert await ours(ground, "monolith") == []


async def test_the_schema_stays_while_something_of_somebody_else_is_in_it(ground: Ground) -> None:
    await switched(ground)
    service = ground.services[0]
    await ground.on("trading_db", "CREATE TABLE cutover.theirs (id int)")
    done = await ground.do(ground.cleanup.drop_machinery, ground.ref(service))
    assert "cutover.theirs" in str(done.facts["schema cutover"])
    assert await ground.on("trading_db", "SELECT count(*) FROM cutover.theirs") == [(0,)]


async def test_no_table_is_dropped_whose_archive_is_not_whole_any_more(ground: Ground) -> None:
    await switched(ground)
    service = ground.services[0]
    for step in (ground.cleanup.drop_machinery, ground.cleanup.archive_tables, ground.cleanup.rename_tables):
        await ground.do(step, ground.ref(service))
    folder = old_tables.folder(ground.plan, service)
    [entry] = manifest.read_manifest(folder / manifest.NAME).entries
    whole = (folder / entry.file).read_bytes()
    for damaged in (whole[:-10], None):
        (folder / entry.file).write_bytes(damaged) if damaged else (folder / entry.file).unlink()
        with pytest.raises(ApplicationError, match=r"1 tables are kept, .* trades: file ") as refused:
            await ground.do(ground.cleanup.drop_tables, ground.ref(service))
        assert (refused.value.type, refused.value.non_retryable) == ("GateClosed", True)
        assert await ground.on("monolith", "SELECT count(*) FROM trades_retired_1") == [(100,)]
    (folder / entry.file).write_bytes(whole)
    assert (await ground.do(ground.cleanup.drop_tables, ground.ref(service))).facts["tables"] == 1
    (folder / entry.file).unlink()  # where nothing is left to be dropped, nothing rests on it
    assert (await ground.do(ground.cleanup.drop_tables, ground.ref(service))).facts["tables"] == 0


async def test_the_record_removes_the_flags_and_names_the_keys_that_nobody_keeps_any_more(ground: Ground) -> None:
    await ground.prepare()
    for service in ground.services:
        await flags.flip(
            ground.control, ground.plan.migration, service, primary_side="service", epoch=1, actor="t", pause_id=None
        )
    record = await ground.do(ground.cleanup.record_migration, ground.ref())
    again = await ground.do(ground.cleanup.record_migration, ground.ref())
    assert again.facts == record.facts
    assert await flags.left(ground.control, ground.plan.migration) == []
    routes = await flags.all(ground.control, ground.plan.migration)
    assert {route.primary_side for route in routes.values()} == {"service"}
    [words] = [str(value) for name, value in record.facts.items() if "trades_user_id_fkey" in name]
    assert "trades" in words
    assert "ON DELETE CASCADE" in words
    kept = await ground.control.fetchval("SELECT facts::text FROM control.evidence WHERE gate = 'record' LIMIT 1")
    assert "outcomes_trade_id_fkey" in kept


async def writes(ground: Ground, side: str, seconds: float, count: int = 30) -> None:
    """What every service's clients report."""
    collector = Collector(ground.plan.migration, "test")
    for service in ground.services:
        for _ in range(count):
            collector.record(service, side, str(ground.pair(service).tables[0]), "write", seconds)  # type: ignore[arg-type]
    await collector.flush(ground.control)


async def latency_problems(ground: Ground) -> list[str]:
    measured = await ground.do(ground.cleanup.measure_way_back, ground.gate("give-up-way-back"))
    assert measured.ok == (not measured.problems)
    return [one for one in measured.problems if "latency" in one]


async def test_a_latency_that_cannot_be_read_does_not_let_the_way_back_be_given_up(ground: Ground) -> None:
    await switched(ground)
    problems = await latency_problems(ground)
    assert len(problems) == 3
    assert all("no live instance reports" in one for one in problems)
    await writes(ground, "service", 0.002, count=5)
    assert all("not enough writes" in one or "no baseline" in one for one in await latency_problems(ground))
    await writes(ground, "service", 0.002)
    assert all("no baseline" in one for one in await latency_problems(ground))
    await writes(ground, "monolith", 0.002)
    for service in ground.services:
        await baseline.record(ground.control, ground.plan.migration, service, timedelta(minutes=5))
    assert await latency_problems(ground) == []
