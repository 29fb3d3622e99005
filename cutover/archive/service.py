"""The monolith's tables of one service at the end: exported, renamed, watched, dropped. Each may run again."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cutover import faults
from cutover.archive import export, manifest
from cutover.control import retired
from cutover.control.database import Control
from cutover.errors import Refused
from cutover.plan.models import Plan
from cutover.postgres import catalog, retire
from cutover.postgres.databases import Pair

#: The manifest's fact that says that its files came back as they went.
RESTORE_TEST, PASSED = "restore_test", "passed"


def folder(plan: Plan, service: str) -> Path:
    """Where the archive of a service's tables goes; every worker has to reach it."""
    return Path(plan.cleanup.archive_dir) / plan.migration / service


@dataclass(frozen=True)
class Archived:
    """The export of a service's tables; `rows` and `bytes` over all of them."""

    folder: Path
    tables: int
    rows: int
    bytes: int


async def archive(pair: Pair, folder: Path, plan_hash: str, progress: Callable[[int], None] | None = None) -> Archived:
    """Exports every table, verifies the files' checksums and loads them back in a test that leaves nothing.

    An archive that is whole already is taken as it is. Raises Refused where the export does not come back.
    """
    if (path := folder / manifest.NAME).is_file():
        found = manifest.read_manifest(path)
        # another plan may be adopted after the tables were renamed: they were archived once, by the former one
        ours = found.facts.get("plan_hash") == plan_hash or await _renamed(pair)
        good = ours and found.facts.get(RESTORE_TEST) == PASSED
        if good and not await asyncio.to_thread(manifest.verify, found):
            return _archived(found)
    entries = []
    for table in pair.tables:
        async with faults.step("archive.export"):
            entries.append(await export.export_table(pair.monolith, table, folder, progress=progress))
    facts = {"migration": pair.migration, "service": pair.service, "plan_hash": plan_hash}
    path = manifest.write_manifest(folder, entries, **facts)
    written = manifest.read_manifest(path)
    async with faults.step("archive.prove"):
        problems = await asyncio.to_thread(manifest.verify, written)
        problems += [r.problem for r in await manifest.restore_test(written, pair.monolith) if r.problem]
        if problems:
            path.unlink()  # so that the next run exports anew
            raise Refused(f"{pair.service}: the archive does not come back as it went: {'; '.join(problems[:5])}")
        # said only now: an archive whose test was cut short is exported and tested again
        manifest.write_manifest(folder, entries, **facts, **{RESTORE_TEST: PASSED})
    return _archived(written)


async def _renamed(pair: Pair) -> bool:
    """Whether every table has been renamed, which only follows a whole archive."""
    async with pair.monolith.session("cutover-retire") as connection:
        return all([await retire.retired_name(connection, table) for table in pair.tables])


def _archived(found: manifest.Manifest) -> Archived:
    return Archived(
        folder=found.folder,
        tables=len(found.entries),
        rows=sum(entry.rows for entry in found.entries),
        bytes=sum(entry.bytes for entry in found.entries),
    )


async def rename(pair: Pair, control: Control) -> list[str]:
    """Renames the tables and notes their counters of now; the new names."""
    async with pair.monolith.session("cutover-retire") as connection:
        names = []
        for table in pair.tables:
            async with faults.step("retire.rename"):
                names.append((await retire.retire(connection, table)).name)
    await quiet(pair, control)
    return names


async def quiet(pair: Pair, control: Control) -> list[retired.Quiet]:
    """For each renamed table the seconds since it was last seen to be used; dropped ones are left out."""
    found = []
    async with pair.monolith.session("cutover-retire") as connection:
        for table in pair.tables:
            renamed = await retire.retired_name(connection, table)
            if renamed is None or not await catalog.find_tables(connection, [renamed]):
                continue
            used = (await retire.usage(connection, [renamed]))[renamed]
            found.append(await retired.note(control, pair.migration, pair.service, str(table), renamed.name, used))
    return found


async def drop(pair: Pair) -> int:
    """Drops the renamed tables; how many were there. Tables are dropped in an order that foreign keys allow."""
    async with pair.monolith.session("cutover-retire") as connection:
        left = [name for table in pair.tables if (name := await retire.retired_name(connection, table))]
        dropped = 0
        while left:
            stuck: list[Refused] = []
            for name in list(left):
                try:
                    async with faults.step("retire.drop"):
                        dropped += await retire.drop_retired(connection, name)
                    left.remove(name)
                except Refused as refused:
                    stuck.append(refused)
            if len(stuck) == len(left) and stuck:
                raise stuck[0]
    return dropped
