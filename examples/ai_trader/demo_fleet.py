"""The demo's processes: workers, traffic, psql writers. Started, killed, replaced and ended by their own handles."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutover.devstack import processes
from cutover.devstack.home import write_private
from cutover.errors import ConfigError

#: Longer than a worker's own grace.
STOP_SECONDS = 30.0


@dataclass
class Child:
    """One process and where its output goes. `token` is one of its arguments, by which it is known again."""

    name: str
    token: str
    output: Path
    process: subprocess.Popen[bytes]
    #: We have ended it; a process that ends without this has failed.
    ended_by_us: bool = False

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@dataclass
class Fleet:
    """All processes of one run. `folder` is also their working folder, so what they write stays out of the checkout."""

    folder: Path
    environ: Mapping[str, str]
    children: dict[str, Child] = field(default_factory=dict)
    traffic_logs: list[Path] = field(default_factory=list)
    psql_logs: list[Path] = field(default_factory=list)
    stats_files: list[Path] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    _lives: dict[str, int] = field(default_factory=dict)
    _traffic_rate: float = 0.0
    _traffic_reads: float = 0.3

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def workers(self) -> list[str]:
        return sorted(name for name in self.children if name.startswith("worker"))

    @property
    def traffic(self) -> list[str]:
        return sorted(name for name in self.children if name.startswith("traffic"))

    @property
    def logs(self) -> list[Path]:
        """Every client's log of its writes."""
        return [*self.traffic_logs, *self.psql_logs]

    def start_worker(self, number: int) -> Child:
        return self._start(f"worker-{number}", ["-m", "workers"], "workers")

    def start_traffic(self, client: int, rate: float, reads: float = 0.3) -> Child:
        """A traffic process (`reads` for each row written); a later life of the same client has files of its own."""
        self._traffic_rate, self._traffic_reads = rate, reads
        name = f"traffic-{client}"
        life = self._lives.get(name, 0)
        stem = self.folder / (name if not life else f"{name}-again-{life}")
        log, stats = stem.with_suffix(".jsonl"), stem.with_suffix(".stats.json")
        arguments = ["-m", "examples.ai_trader.traffic", "--client", str(client), "--rate", str(rate)]
        arguments += ["--reads", str(reads), "--log", str(log), "--stats", str(stats)]
        child = self._start(name, arguments, str(log))
        self.traffic_logs.append(log)
        self.stats_files.append(stats)
        return child

    def start_psql(self, writers: int = 2, rate: float = 2.0) -> Child:
        log = self.folder / "psql.jsonl"
        arguments = ["-m", "examples.ai_trader.psql_writers", "--writers", str(writers), "--rate", str(rate)]
        child = self._start("psql", [*arguments, "--log", str(log)], str(log))
        self.psql_logs.append(log)
        return child

    def _start(self, name: str, arguments: Sequence[str], token: str) -> Child:
        life = self._lives.get(name, 0)
        self._lives[name] = life + 1
        output = self.folder / f"{name}.log"
        with output.open("ab") as sink:
            # A session of its own: Ctrl-C is for the demo, which then ends them in order.
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=dict(self.environ),
                start_new_session=True,
            )
        child = Child(name, token, output, process)
        self.children[name] = child
        write_private(
            _noted(self.folder), json.dumps({c.process.pid: c.token for c in self.children.values() if c.alive})
        )
        return child

    def kill(self, name: str) -> None:
        """kill -9, and nothing else."""
        child = self.children[name]
        child.ended_by_us = True
        child.process.kill()
        child.process.wait()
        self.killed.append(name)

    def restart(self, name: str) -> None:
        """Start what was killed again."""
        kind, _, number = name.partition("-")
        if kind == "worker":
            self.start_worker(int(number))
        else:
            self.start_traffic(int(number), self._traffic_rate, self._traffic_reads)

    def by_pid(self, pid: int) -> str | None:
        return next((name for name, child in self.children.items() if child.process.pid == pid), None)

    def failed(self) -> list[str]:
        """Processes that ended by themselves, in words with the end of their output."""
        return [
            f"{child.name} ended by itself with status {child.process.returncode}; the end of {child.output}:\n"
            + processes.tail(child.output)
            for child in self.children.values()
            if not child.alive and not child.ended_by_us
        ]

    async def stop(self, *names: str) -> None:
        """SIGTERM to all at once, wait, SIGKILL for what stays. Idempotent."""
        chosen = [self.children[name] for name in names if self.children[name].alive]
        for child in chosen:
            child.ended_by_us = True
            child.process.send_signal(signal.SIGTERM)
        for child in chosen:
            try:
                await asyncio.to_thread(child.process.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def stop_now(self) -> None:
        """The same without an event loop, for the way out of an interrupted demo."""
        living = [child for child in self.children.values() if child.alive]
        for child in living:
            child.ended_by_us = True
            child.process.terminate()
        deadline = time.monotonic() + 5
        for child in living:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def statistics(self) -> list[dict[str, Any]]:
        """What each traffic process that ended in order wrote about itself."""
        return [json.loads(path.read_text()) for path in self.stats_files if path.exists()]

    async def writing(self, seconds: float = 60.0) -> None:
        """Until every client has a write acknowledged. Raises ConfigError with the output of one that has none."""
        deadline = time.monotonic() + seconds
        waiting = list(self.logs)
        while waiting:
            waiting = [path for path in waiting if not path.exists() or b'"event":"ok"' not in path.read_bytes()]
            if failed := self.failed():
                raise ConfigError("\n".join(failed))
            if waiting and time.monotonic() > deadline:
                names = ", ".join(path.stem for path in waiting)
                raise ConfigError(f"no acknowledged write of {names} within {seconds:.0f} s; see {self.folder}")
            await asyncio.sleep(0.1)


def _noted(folder: Path) -> Path:
    return folder / "children.json"


def end_leftovers(folder: Path) -> int:
    """End the processes of a demo that was itself killed; how many there were."""
    try:
        noted: dict[str, str] = json.loads(_noted(folder).read_text())
    except (FileNotFoundError, ValueError):
        return 0
    living = {int(pid): token for pid, token in noted.items() if processes.is_ours(int(pid), token)}
    for pid, token in living.items():
        processes.stop(pid, token, ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)))
    return len(living)
