"""A table as a compressed file: COPY's text format, gzip, checksums; never half a file under the final name."""

import asyncio
import contextlib
import glob
import hashlib
import os
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cutover.errors import ConfigError
from cutover.postgres import export
from cutover.postgres.databases import Database
from cutover.postgres.identifiers import TableName

_BLOCK = 1 << 20  # bytes of text that are compressed at once, off the event loop
_ABANDONED = 600.0  # seconds without a write


@dataclass(frozen=True)
class ManifestEntry:
    """One exported table. `sha256` and `bytes` are of the file; `row_hash` is of the rows, in any order."""

    table: str
    rows: int
    bytes: int
    sha256: str
    columns: tuple[tuple[str, str], ...]
    file: str
    row_hash: str


class _Writer:
    """Compresses, hashes and writes blocks; sizes in bytes."""

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
        # gzip framing (16 +), and no time or name in the header: the same rows give the same file
        self._zip = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self._hash = hashlib.sha256()
        self._pending = bytearray()
        self.written = 0
        self.lines = 0

    def add(self, block: bytes) -> None:
        self.lines += block.count(b"\n")
        self._put(self._zip.compress(block))

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self.written += self._file.write(data)

    def finish(self) -> str:
        """Everything on disk; returns the file's sha256."""
        self._put(self._zip.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        self._file.close()


def file_name(table: TableName) -> str:
    """A file name that any table name gives, and no two tables share."""
    readable = re.sub(r"[^A-Za-z0-9_]", "_", str(table))[:60]
    digest = hashlib.sha256(f"{table.schema}\x00{table.name}".encode()).hexdigest()[:8]
    return f"{readable}-{digest}.copy.gz"


def prepare_folder(folder: Path, final: Path) -> None:
    """Makes the folder, readable by its owner alone, and clears what killed exports of this table left in it.

    Raises ConfigError where that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob(glob.escape(final.stem) + ".partial-*"):
            if time.time() - left.stat().st_mtime > _ABANDONED:  # a younger one may be another attempt's, at work
                left.unlink(missing_ok=True)
    except OSError as e:
        raise ConfigError(f"archive folder {str(folder)!r} cannot be made: {e.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


async def export_table(
    database: Database, table: TableName, folder: Path, *, progress: Callable[[int], None] | None = None
) -> ManifestEntry:
    """Exports one table into `folder`, replacing an earlier export of it; `progress` hears the bytes written so far.

    Raises ConfigError for a folder or disk that does not take it, or rows that do not match the count.
    """
    final = folder / file_name(table)
    await asyncio.to_thread(prepare_folder, folder, final)
    partial = final.with_suffix(f".partial-{os.getpid()}")
    try:
        writer = await asyncio.to_thread(_Writer, partial)
        pending = bytearray()

        async def sink(data: bytes) -> None:
            pending.extend(data)
            if len(pending) >= _BLOCK:
                block = bytes(pending)
                pending.clear()
                await asyncio.to_thread(writer.add, block)
                if progress:
                    progress(writer.written)

        try:
            exported = await export.export(database, table, sink)
            await asyncio.to_thread(writer.add, bytes(pending))
            digest = await asyncio.to_thread(writer.finish)
        finally:
            writer.abandon()
        if writer.lines != exported.rows:
            raise ConfigError(f"export of {table}: {writer.lines} lines for {exported.rows} rows; export it again")
        await asyncio.to_thread(partial.rename, final)
        await asyncio.to_thread(sync_folder, folder)
    except OSError as e:
        if e.errno is None:
            raise  # a lost connection, not the disk
        raise ConfigError(f"export of {table} into {str(folder)!r} failed: {e.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(partial.unlink)
    return ManifestEntry(
        table=str(table), rows=exported.rows, bytes=writer.written, sha256=digest, columns=exported.columns,
        file=final.name, row_hash=exported.row_hash,
    )  # fmt: skip
