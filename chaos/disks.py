"""Disks that can be full: a file system of limited size, in memory, is a server's folder with data, WAL and log.

Linux only, for who may mount.
"""

import errno
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cutover.errors import ConfigError

#: Some times what a campaign's server keeps at most: its databases, `max_wal_size` and its log.
SIZE_MB = 640
_LEAST = 4096


@dataclass(frozen=True)
class Disk:
    """The file system at a folder."""

    folder: Path

    @classmethod
    def mounted(cls, folder: Path) -> "Disk":
        """Raises ConfigError where it cannot be mounted."""
        folder.mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=0700", "cutover-chaos", str(folder))
        return cls(folder)

    def unmount(self) -> None:
        """Also where somebody has a file open there; it goes once that is closed."""
        _run("umount", "--lazy", str(self.folder))

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self) -> None:
        """A file takes all that is left."""
        with self._filler.open("wb") as file:
            _take(file.fileno(), self.free)

    def clear(self) -> None:
        """That file goes."""
        self._filler.unlink(missing_ok=True)

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"


def _take(file: int, free: int) -> None:
    """Takes so many bytes, and less and less where others are taking them too."""
    end, step = 0, free
    while step >= _LEAST:
        try:
            os.posix_fallocate(file, end, step)
            end += step
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            step //= 2


def mounted_below(folder: Path) -> list[Disk]:
    """What is mounted in that folder."""
    mounts = Path("/proc/self/mounts")
    points = [Path(line.split()[1]) for line in mounts.read_text().splitlines()] if mounts.exists() else []
    return [Disk(point) for point in points if folder in point.parents]


def _run(*arguments: str) -> None:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"{arguments[0]} does not run: {error.strerror}") from None
    if done.returncode:
        raise ConfigError(done.stderr.strip() or f"{arguments[0]} ended with {done.returncode}")
