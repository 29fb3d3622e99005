"""Passes and writers as processes of their own, so that neither shares this program's interpreter or memory."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from bench.ground import DATABASE, Ground
from bench.one_pass import Outcome, Wanted


def pass_over(ground: Ground, table: str, *, stream: bool = False) -> Outcome:
    """The product's pass over one table; raises RuntimeError where it does not end well."""
    wanted = Wanted(
        source=ground.source.dsn(DATABASE), target=ground.target.dsn(DATABASE), control=ground.target.dsn("control"),
        table=table, stream=stream,
    )  # fmt: skip
    command = [sys.executable, "-m", "bench.one_pass", json.dumps(asdict(wanted))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError("the pass failed; its error stands above")
    return Outcome(**json.loads(done.stdout))


@dataclass(frozen=True)
class Load:
    """What the writers met: writes a second that were reached, and latencies in milliseconds."""

    writes: int
    per_second: int
    p50_ms: float
    p99_ms: float


class Writers:
    """A context manager: writers at the source for `seconds`; `load()` waits for their end."""

    def __init__(self, ground: Ground, table: str, rows: int, seconds: float) -> None:
        arguments = [ground.source.dsn(DATABASE), table, str(rows), str(seconds)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.writers", *arguments], stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    @property
    def writing(self) -> bool:
        return self._process.poll() is None

    def load(self) -> Load:
        out, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError("the writers failed; their error stands above")
        return Load(**json.loads(out))
