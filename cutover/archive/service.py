"""The monolith's tables of one service at the end: exported, renamed, watched, dropped. Each may run again."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cutover import faults
from cutover.archive import export, manifest
from cutover.control import plans, retired
from cutover.control.database import Control
from cutover.errors import Refused
from cutover.plan.models import Plan
from cutover.postgres import catalog, retire
from cutover.postgres.databases import Pair

#: The manifest's fact that says that its files came back as they went.
RESTORE_TEST, PASSED = "restore_test", "passed"
#: What is said where the folder holds an archive that is not this migration's.
FOREIGN = (
    "the archive in its folder is not known to be of this migration and this monolith (a rehearsal's, or an older "
    "version's): move that archive away, or name a folder of this migration's own (cleanup.archive_dir)"
)


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


#: Whose archive lies in a folder: ours; ours of before another plan was adopted; somebody else's.
Claim = Literal["ours", "former", "foreign"]


async def claim(pair: Pair, control: Control, found: manifest.Manifest, plan_hash: str) -> Claim:
    """Whether the archive counts for this service of this very migration.

    The plan alone does not tell: a rehearsal may have the same one, and share the folder. One of a former plan counts
    once no table stands under its name any more: tables are archived once, and only then renamed and dropped.
    """
    if any(found.facts.get(name) != value for name, value in (await _origin(pair, control)).items()):
        return "foreign"
    if found.facts.get("plan_hash") == plan_hash:
        return "ours"
    async with pair.monolith.session("cutover-retire") as connection:
        return "former" if await catalog.find_tables(connection, list(pair.tables)) else "ours"


async def _origin(pair: Pair, control: Control) -> dict[str, str]:
    """The manifest's facts that say where the rows are from, and for which migration they were archived."""
    async with pair.monolith.session("cutover-retire") as connection:
        system, database = await catalog.database_identity(connection)
    return {
        "migration": pair.migration,
        "service": pair.service,
        "system_identifier": str(system),
        "database": database,
        "registered": await plans.first_registered(control, pair.migration),
    }


async def archive(
    pair: Pair, control: Control, folder: Path, plan_hash: str, progress: Callable[[int], None] | None = None
) -> Archived:
    """Exports every table, verifies the files' checksums and loads them back in a test that leaves nothing.

    The manifest is written behind that proof alone, so whatever stands in one was proved. An archive that is whole
    already is taken as it is, even where another attempt has made it meanwhile. Raises Refused where the export does
    not come back, and where somebody else's archive lies in the folder: it is not overwritten.
    """
    found, good = await _lying(pair, control, folder, plan_hash)
    if found and good:
        return _archived(found)
    entries = []
    for table in pair.tables:
        async with faults.step("archive.export"):
            entries.append(await export.export_table(pair.monolith, table, folder, progress=progress))
    facts = {**await _origin(pair, control), "plan_hash": plan_hash, RESTORE_TEST: PASSED}
    made = manifest.Manifest(folder, facts, tuple(entries))
    async with faults.step("archive.prove"):
        problems = await asyncio.to_thread(manifest.verify, made)
        problems += [r.problem for r in await manifest.restore_test(made, pair.monolith) if r.problem]
        if problems:
            raise Refused(f"{pair.service}: the archive does not come back as it went: {'; '.join(problems[:5])}")
        found, good = await _lying(pair, control, folder, plan_hash)
        if found and good:
            return _archived(found)  # of an attempt that has overtaken this one
        await asyncio.to_thread(_publish, made, found)
    return _archived(made)


async def _lying(pair: Pair, control: Control, folder: Path, plan_hash: str) -> tuple[manifest.Manifest | None, bool]:
    """The archive in the folder, and whether it is ours, proved and whole. Raises Refused for a foreign one."""
    if not (path := folder / manifest.NAME).is_file():
        return None, False
    found = manifest.read_manifest(path)
    whose = await claim(pair, control, found, plan_hash)
    if whose == "foreign":
        raise Refused(f"{pair.service}: {FOREIGN}")
    good = whose == "ours" and found.facts.get(RESTORE_TEST) == PASSED
    return found, good and not await asyncio.to_thread(manifest.verify, found)


def _publish(made: manifest.Manifest, former: manifest.Manifest | None) -> None:
    manifest.write_manifest(made.folder, made.entries, **made.facts)
    kept = {entry.file for entry in made.entries}
    for entry in former.entries if former else ():
        if entry.file not in kept:
            (made.folder / entry.file).unlink(missing_ok=True)


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


async def left(pair: Pair) -> list[str]:
    """The renamed tables that are still there."""
    async with pair.monolith.session("cutover-retire") as connection:
        return [found.name for table in pair.tables if (found := await retire.retired_name(connection, table))]


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
