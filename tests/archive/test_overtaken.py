"""An attempt that was frozen and overtaken wakes up over the archive that another one has proved."""

import asyncio
import os
from pathlib import Path

import pytest

from cutover.archive import manifest
from cutover.archive import service as old_tables
from cutover.archive.manifest import NAME, read_manifest, verify
from cutover.control.database import Control
from cutover.postgres import export
from cutover.postgres.databases import Database, Pair
from cutover.postgres.identifiers import TableName

TRADES = TableName("public", "trades")


@pytest.fixture
async def pair(monolith_db: Database) -> Pair:
    async with monolith_db.session() as c:
        await c.execute(
            "CREATE TABLE trades (id int PRIMARY KEY, note text); "
            "INSERT INTO trades SELECT n, repeat(md5(n::text), 4) FROM generate_series(1, 30000) n"
        )
    return Pair("test", "svc", monolith_db, monolith_db, (TRADES,))


class Freeze:
    """Stops the first task that comes here, until it is woken."""

    def __init__(self) -> None:
        self.asleep, self.awake = asyncio.Event(), asyncio.Event()
        self.used = False

    async def __call__(self) -> None:
        if not self.used:
            self.used = True
            self.asleep.set()
            await self.awake.wait()


async def in_the_middle_of_the_rows(freeze: Freeze, patch: pytest.MonkeyPatch) -> None:
    """The first block is in the file, others are to come: from a snapshot that is older than the next attempt's."""
    original = export.export
    blocks = 0

    async def slow(database: Database, table: TableName, sink: object) -> export.Exported:
        async def counted(data: bytes) -> None:
            nonlocal blocks
            await sink(data)  # type: ignore[operator]
            blocks += len(data)
            if blocks > 1 << 21:
                await freeze()

        return await original(database, table, counted)

    patch.setattr(export, "export", slow)


async def with_the_rows_on_disk(freeze: Freeze, patch: pytest.MonkeyPatch) -> None:
    """The final name is to come."""
    original = asyncio.to_thread

    async def to_thread(function: object, *arguments: object) -> object:
        if getattr(function, "__name__", "") == "rename":
            await freeze()
        return await original(function, *arguments)  # type: ignore[arg-type]

    patch.setattr(asyncio, "to_thread", to_thread)


async def with_all_proved(freeze: Freeze, patch: pytest.MonkeyPatch) -> None:
    """The manifest is to come."""
    original = manifest.restore_test

    async def tested(made: manifest.Manifest, database: Database) -> list[manifest.RestoreResult]:
        found = await original(made, database)
        await freeze()
        return found

    patch.setattr(manifest, "restore_test", tested)


@pytest.mark.parametrize("place", [in_the_middle_of_the_rows, with_the_rows_on_disk, with_all_proved])
async def test_an_attempt_that_was_overtaken_changes_nothing_of_the_proved_archive(
    pair: Pair, control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object
) -> None:
    freeze = Freeze()
    await place(freeze, monkeypatch)  # type: ignore[operator]
    late = asyncio.create_task(old_tables.archive(pair, control, tmp_path, "plan"))
    await asyncio.wait_for(freeze.asleep.wait(), 30)
    async with pair.monolith.session() as c:  # what its snapshot does not have
        await c.execute("UPDATE trades SET note = 'newer' WHERE id % 2 = 0")
    proved = await old_tables.archive(pair, control, tmp_path, "plan")
    found = read_manifest(tmp_path / NAME)
    listed = {name: (tmp_path / name).read_bytes() for name in (NAME, *(entry.file for entry in found.entries))}
    freeze.awake.set()
    assert await asyncio.wait_for(late, 60) == proved
    assert {name: (tmp_path / name).read_bytes() for name in listed} == listed
    assert verify(read_manifest(tmp_path / NAME)) == []


async def test_an_archive_that_is_not_whole_is_made_anew_and_leaves_no_file_of_the_former_one(
    pair: Pair, control: Control, tmp_path: Path
) -> None:
    await old_tables.archive(pair, control, tmp_path, "plan")
    [entry] = read_manifest(tmp_path / NAME).entries
    async with pair.monolith.session() as c:
        await c.execute("DELETE FROM trades WHERE id > 10")
    (tmp_path / entry.file).write_bytes(b"")
    assert (await old_tables.archive(pair, control, tmp_path, "plan")).rows == 10
    [anew] = read_manifest(tmp_path / NAME).entries
    assert set(os.listdir(tmp_path)) == {NAME, anew.file}


async def test_a_restore_test_that_does_not_end_leaves_no_manifest(
    pair: Pair, control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut_short(*_: object) -> list[manifest.RestoreResult]:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "restore_test", cut_short)
        with pytest.raises(ConnectionResetError):
            await old_tables.archive(pair, control, tmp_path, "plan")
    assert not (tmp_path / NAME).exists()
    assert (await old_tables.archive(pair, control, tmp_path, "plan")).rows == 30000
