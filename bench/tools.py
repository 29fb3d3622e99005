"""The other tools, as published: `reladiff` and `data-diff`, each in a virtual environment of its own.

All columns are compared. Their settings are the best of those that were tried (docs/performance.md lists them).
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.ground import CHANGES, DATABASE, Ground
from cutover.devstack.cluster import SUPERUSER

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Tool:
    """A tool by its name on PyPI; `options` are its best settings for tables of some millions of rows."""

    name: str
    options: tuple[str, ...]

    @property
    def _folder(self) -> Path:
        return _ROOT / ".cutover" / f"bench-venv-{self.name}"

    def install(self) -> None:
        """Makes the environment from the hash-pinned lock file; does nothing where it is there already."""
        lock = _ROOT / "requirements" / f"bench-{self.name}.txt"
        wanted = hashlib.sha256(lock.read_bytes() + str(self._folder).encode()).hexdigest()
        stamp = self._folder / "bench-stamp"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self._folder)], check=True)
        subprocess.run(
            [str(self._folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "--no-input",
             "--require-hashes", "-r", str(lock)],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
        stamp.write_text(wanted)

    def compare(self, ground: Ground, table: str, *options: str) -> tuple[float, set[int]]:
        """Seconds, and the keys that it reports. `options` come after its best settings and win."""
        columns = [word for column in CHANGES for word in ("-c", column)]
        # data-diff does not take a DSN without a password; the servers trust everybody on loopback
        source, target = (c.dsn(DATABASE).replace(f"{SUPERUSER}@", f"{SUPERUSER}:unused@") for c in ground.both)
        command = [
            str(self._folder / "bin" / self.name), source, table, target, table, "-k", "id", *columns, "--json",
            *self.options, *options,
        ]  # fmt: skip
        started = time.monotonic()
        # their printer breaks lines at the width of the terminal
        environment = {**os.environ, "COLUMNS": "1000000"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        seconds = time.monotonic() - started
        # they log an error in the middle, and end with 0 all the same
        if done.returncode or " ERROR " in done.stderr:
            raise RuntimeError(f"{self.name} failed: {done.stderr[-2000:]}")
        return seconds, {_key(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")}


def _key(line: list[object]) -> int:
    """The key in a line of the tools' `--json`: ["+", ["1", …]], the key first."""
    values = line[1]
    assert isinstance(values, list)
    return int(values[0])


RELADIFF = Tool("reladiff", ("--skip-sort-results", "--threads", "4", "--bisection-threshold", "200000"))
DATA_DIFF = Tool("data-diff", ("--no-tracking", "--threads", "4"))
TOOLS = (RELADIFF, DATA_DIFF)
