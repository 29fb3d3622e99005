"""Clocks that can be set: a preloaded library shifts the time of day of the processes that were started with it.

Each clock is a file that holds a number of seconds; who reads the time adds it (clock.c). Monotonic clocks stay.
"""

import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cutover.errors import ConfigError

_SOURCE = Path(__file__).with_name("clock.c")
_PROBE = 10_000


@dataclass(frozen=True)
class Clock:
    """The time of day of all processes that were started with `environment`."""

    file: Path
    library: Path

    @classmethod
    def made(cls, file: Path, library: Path) -> "Clock":
        """One that goes right, for processes of whatever account."""
        clock = cls(file, library)
        file.write_bytes(struct.pack("=q", 0))
        file.chmod(0o644)
        return clock

    @property
    def environment(self) -> Mapping[str, str]:
        return {"LD_PRELOAD": str(self.library), "CHAOS_CLOCK": str(self.file)}

    def shift(self, seconds: int) -> None:
        """From now on it is that far off; 0 sets it right."""
        with self.file.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", seconds))


def compiled(folder: Path) -> Path:
    """The library, made there and tried. Raises ConfigError where it cannot be made, or changes nothing."""
    library = folder / "clock.so"
    try:
        made = subprocess.run(
            ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise ConfigError(f"cc does not run: {error.strerror}") from None
    if made.returncode:
        raise ConfigError(f"cc: {made.stderr.strip()[-500:]}")
    library.chmod(0o755)
    _require_effect(Clock.made(folder / "probe.clock", library))
    return library


def _require_effect(clock: Clock) -> None:
    clock.shift(_PROBE)
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env=dict(clock.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode or not 0 <= float(told.stdout) - time.time() - _PROBE + 60 <= 120:
        raise ConfigError("a preloaded library does not change the time of day here")
