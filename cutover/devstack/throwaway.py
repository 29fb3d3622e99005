"""Folders for servers that live no longer than the process that runs them: benchmarks, campaigns, tests.

A folder's name says who made it, so what a killed process has left, servers included, is ended by the next one.
"""

import os
import shutil
import tempfile
from pathlib import Path

from cutover.devstack import processes
from cutover.devstack.cluster import Cluster

#: Not the default: the servers' account has to pass it.
SHARED = Path("/var/tmp")


def make(prefix: str) -> Path:
    """A new folder of this process, which the servers' account can pass."""
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=SHARED))
    folder.chmod(0o711)
    return folder


def abandoned(prefix: str) -> list[Path]:
    """The folders of that prefix whose process is gone."""
    found = []
    for folder in SHARED.glob(f"{prefix}*-*"):
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
