"""A table as a compressed file: COPY's text format, gzip, checksums; never half a file under the final name.

That name tells the contents. An attempt that was overtaken and wakes up writes into a file of its own, and what it
then puts under a name that is there already is the same to the last byte: no proved archive changes.
"""

import asyncio
import contextlib
import glob
import hashlib
import os
import re
import time
import uuid
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
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
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


def file_stem(table: TableName) -> str:
    """How the names of a table's files begin: any table name gives one, and no two tables share it."""
    readable = re.sub(r"[^A-Za-z0-9_]", "_", str(table))[:60]
    digest = hashlib.sha256(f"{table.schema}\x00{table.name}".encode()).hexdigest()[:8]
    return f"{readable}-{digest}"


def file_name(table: TableName, sha256: str) -> str:
    """The name of a table's file with these contents."""
    return f"{file_stem(table)}-{sha256[:16]}.copy.gz"


def partial_of(folder: Path, stem: str) -> Path:
    """Where one attempt writes before the final name. What killed ones have left there is cleared.

    Processes of two containers have the same PID as likely as not, and the folder is shared: it is nobody else's name.
    """
    for left in folder.glob(glob.escape(stem) + ".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # another attempt clears it too
            if time.time() - left.stat().st_mtime > _ABANDONED:  # a younger one may be another attempt's, at work
                left.unlink()
    return folder / f"{stem}.partial-{uuid.uuid4().hex}"


def prepare_folder(folder: Path) -> None:
    """Makes the folder, readable by its owner alone. Raises ConfigError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
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
    """Exports one table into `folder`, beside earlier exports of it; `progress` hears the bytes written so far.

    Raises ConfigError for a folder or disk that does not take it, or rows that do not match the count.
    """
    await asyncio.to_thread(prepare_folder, folder)
    partial: Path | None = None
    try:
        partial = await asyncio.to_thread(partial_of, folder, file_stem(table))
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
        final = folder / file_name(table, digest)
        await asyncio.to_thread(partial.rename, final)
        await asyncio.to_thread(sync_folder, folder)
    except OSError as e:
        if e.errno is None:
            raise  # a lost connection, not the disk
        raise ConfigError(f"export of {table} into {str(folder)!r} failed: {e.strerror}") from None
    finally:
        if partial is not None:
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(partial.unlink)
    return ManifestEntry(
        table=str(table), rows=exported.rows, bytes=writer.written, sha256=digest, columns=exported.columns,
        file=final.name, row_hash=exported.row_hash,
    )  # fmt: skip
