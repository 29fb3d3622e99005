"""The manifest of an archive: which tables, how many rows, which checksums; and the proof that the files hold it."""

import asyncio
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg

from cutover.archive.export import ManifestEntry, partial_of, sync_folder
from cutover.errors import ConfigError
from cutover.postgres.databases import Database
from cutover.postgres.export import scratch

FORMAT = 1
NAME = "manifest.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """A folder's manifest: `facts` say whose archive it is (migration, service, database, plan hash)."""

    folder: Path
    facts: dict[str, str]
    entries: tuple[ManifestEntry, ...]


def write_manifest(folder: Path, entries: Iterable[ManifestEntry], **facts: str) -> Path:
    """Writes `manifest.json` beside the files, whole or not at all; returns its path."""
    ordered = sorted(entries, key=lambda entry: entry.table)
    document = {"format": FORMAT, **facts, "tables": [asdict(entry) for entry in ordered]}
    path, partial = folder / NAME, partial_of(folder, NAME)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_folder(folder)
    return path


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest. Raises ConfigError for a file that is missing or is not one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("format") != FORMAT:
            raise ValueError("another format")
        entries = tuple(
            ManifestEntry(**{**entry, "columns": tuple((name, kind) for name, kind in entry["columns"])})
            for entry in document.pop("tables")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(f"archive manifest {str(path)!r} cannot be read ({type(e).__name__}): export again") from None
    return Manifest(path.parent, document, entries)


def verify(manifest: Manifest) -> list[str]:
    """Reads every file again: its checksum, its size, and its rows; returns the problems, an empty list if none."""
    problems = []
    for entry in manifest.entries:
        path = manifest.folder / entry.file
        try:
            digest, size = hashlib.sha256(), 0
            with path.open("rb") as file:
                while block := file.read(_CHUNK):
                    digest.update(block)
                    size += len(block)
            if size != entry.bytes or digest.hexdigest() != entry.sha256:
                problems.append(f"{entry.table}: file {entry.file} is not the one that was written (checksum)")
                continue
            with gzip.open(path) as text:
                rows = sum(block.count(b"\n") for block in iter(lambda: text.read(_CHUNK), b""))
            if rows != entry.rows:
                problems.append(f"{entry.table}: file {entry.file} holds {rows} rows, not {entry.rows}")
        except (OSError, EOFError, zlib.error) as e:
            problems.append(f"{entry.table}: file {entry.file} cannot be read ({type(e).__name__})")
    return problems


@dataclass(frozen=True)
class RestoreResult:
    """One table of a restore test; `typed`: loaded in its own types, not as text."""

    table: str
    rows: int
    typed: bool
    problem: str


async def restore_test(manifest: Manifest, database: Database) -> list[RestoreResult]:
    """Loads every file into a scratch table of `database` and compares count and hash with the export's.

    One table at a time, in a transaction that is rolled back. A problem is told in the result, not raised.
    """
    results = []
    for entry in manifest.entries:
        async with scratch(database, entry.columns) as table:
            problem, rows = "", 0
            try:
                await table.load(_read(manifest.folder / entry.file))
                rows, row_hash = await table.measure()
                if (rows, row_hash) != (entry.rows, entry.row_hash):
                    problem = f"{rows} rows came back of {entry.rows}, or they are not the same"
            except (EOFError, gzip.BadGzipFile, FileNotFoundError, PermissionError, zlib.error) as e:
                problem = f"file {entry.file} cannot be read ({type(e).__name__})"
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as e:
                problem = f"the rows of file {entry.file} are refused ({type(e).__name__})"  # its text holds a value
            results.append(RestoreResult(entry.table, rows, table.typed, problem))
    return results


async def _read(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(gzip.open, path) as file:
        while block := await asyncio.to_thread(file.read, _CHUNK):
            yield block
