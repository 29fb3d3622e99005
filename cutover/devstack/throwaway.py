"""Folders for servers that live no longer than the process that runs them: benchmarks, campaigns, tests.

A folder's name says who made it, so what a killed process has left, servers included, is ended by the next one.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cutover.devstack import processes
from cutover.devstack.cluster import Cluster

#: Not the default: the servers' account has to pass it.
SHARED = Path("/var/tmp")
#: In memory, where a database is made in a quarter of the time; used where it, and the memory, has that much room.
MEMORY, ROOM = Path("/dev/shm"), 6 << 30


#: Of servers that need not be durable: what is killed are processes, never the machine, and what a process wrote the
#: system still has. No shared memory is outside of their folder, where a kill would leave it for good.
SETTINGS = {"fsync": "off", "dynamic_shared_memory_type": "mmap"}


def make(prefix: str, *, durable: bool = True) -> Path:
    """A new folder of this process, which the servers' account can pass; where it need not be durable, in memory."""
    base = SHARED if durable or _room() < ROOM else MEMORY
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=base))
    folder.chmod(0o711)
    return folder


def _room() -> int:
    """Bytes that files in memory may take; 0 where there are none."""
    try:
        free = os.statvfs(MEMORY)
        known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return min(free.f_bavail * free.f_frsize, int(known["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError):
        return 0


def abandoned(prefix: str) -> list[Path]:
    """The folders of that prefix whose process is gone."""
    found = []
    for folder in (*SHARED.glob(f"{prefix}*-*"), *MEMORY.glob(f"{prefix}*-*")):
        owner = folder.name.removeprefix(prefix).partition("-")[0]
        if folder.stat().st_uid == os.geteuid() and owner.isdigit() and not processes.command_line(int(owner)):
            found.append(folder)
    return found


def end_servers(folder: Path) -> None:
    """Kills the servers that run in a folder."""
    for data in folder.glob("*/data"):
        Cluster(data.parent.name, data.parent, 0).kill9()


def end(folder: Path) -> None:
    """Kills its servers and deletes it."""
    end_servers(folder)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(prefix: str, end: Callable[[Path], None] = end) -> None:
    """Ends what processes have left that were killed before they could do so."""
    for folder in abandoned(prefix):
        end(folder)


@contextmanager
def opened(prefix: str, *, durable: bool = True, end: Callable[[Path], None] = end) -> Iterator[Path]:
    """A new folder for the block, after a sweep; at the block's end it and its servers are gone."""
    sweep(prefix, end)
    folder = make(prefix, durable=durable)
    try:
        yield folder
    finally:
        end(folder)
