"""Preparation's activities: the client programs that are named are used, and tables have one migration."""

from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError

from activities.context import Context
from activities.preparation import PreparationActivities
from cutover.control import plans
from cutover.devstack.binaries import postgres_bin
from cutover.flags import store as flags
from cutover.plan.load import load_text
from cutover.postgres import epoch
from cutover.settings import Settings
from tests.activities.conftest import Ground


def with_programs(ground: Ground, folder: Path) -> PreparationActivities:
    settings = Settings({**ground.settings.values, "CUTOVER_PG_BIN": str(folder)})
    return PreparationActivities(Context(settings, ground.control))


async def test_a_worker_takes_pg_dump_from_the_folder_that_is_named(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    service = ground.services[0]
    found = await ground.do(with_programs(ground, postgres_bin()).preflight, ground.ref())
    assert found.findings == []
    made = await ground.do(with_programs(ground, postgres_bin()).create_schema, ground.ref(service))
    assert made.facts["created"]


async def test_preflight_and_the_step_that_needs_it_miss_pg_dump_alike(ground: Ground, tmp_path: Path) -> None:
    without = with_programs(ground, tmp_path)
    found = await ground.do(without.preflight, ground.ref())
    assert f"pg_dump is not in {tmp_path}" in found.findings[0]
    with pytest.raises(ApplicationError, match=f"pg_dump is not in {tmp_path}"):
        await ground.do(without.create_schema, ground.ref(ground.services[0]))


async def test_without_a_named_folder_the_development_packages_programs_are_used(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = await ground.do(ground.preparation.create_schema, ground.ref(ground.services[0]))
    assert made.facts["created"]


async def test_preflight_names_the_migration_that_has_the_tables_and_takes_none(ground: Ground) -> None:
    rival = load_text(
        "migration: rival\nmonolith: {database: monolith}\n"
        "services: {ledger: {database: trading_db, tables: {trades: {}}}}\n"
    )
    await plans.register(ground.control, rival, "test")
    await ground.do(ground.plans.claim_tables, ground.ref())
    found = await ground.do(ground.preparation.preflight, ground.ref().model_copy(update={
        "migration": "rival", "plan_hash": rival.hash,
    }))  # fmt: skip
    assert f"table(s) trades of this monolith belong to migration {ground.plan.migration}" in found.findings[0]
    assert await ground.control.fetchval("SELECT count(*) FROM control.claim WHERE migration = 'rival'") == 0
    again = await ground.do(ground.preparation.preflight, ground.ref())
    assert again.blocking == 0


async def test_an_epoch_row_that_is_gone_after_a_switch_is_not_made_as_it_was_at_the_beginning(ground: Ground) -> None:
    service = ground.services[0]
    pair = ground.pair(service)
    await ground.do(ground.preparation.create_schema, ground.ref(service))
    await ground.do(ground.preparation.install_fences, ground.ref(service))
    await flags.ensure(ground.control, pair.migration, service)
    await ground.control.execute(
        "UPDATE control.route SET primary_side = 'service', read_from_new = true, write_to_new_primary = true, "
        "percentage = 100, epoch = 1"
    )
    async with pair.target.session() as connection:
        await connection.execute("DELETE FROM cutover.epoch")
        with pytest.raises(ApplicationError, match="has lost its epoch row since a switch"):
            await ground.do(ground.preparation.install_fences, ground.ref(service))
        assert await epoch.read(connection, service) is None
        await connection.execute(epoch.row_sql(service, "service", "service", 2))
        with pytest.raises(ApplicationError, match="says epoch 2 and the control database 1"):
            await ground.do(ground.preparation.install_fences, ground.ref(service))
        await connection.execute(epoch.set_sql(service, "service", 1))
    await ground.do(ground.preparation.install_fences, ground.ref(service))
