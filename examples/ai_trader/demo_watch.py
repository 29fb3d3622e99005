"""What the demo sees: every open run's status, the stages, and how the clients fare. Looked at a few times a second."""

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError

from cutover.cli.status import Overview, overview
from cutover.control import stages
from cutover.control.database import Control
from cutover.errors import CutoverError
from workflows.status import Status

EVENTS = ("ok", "fail", "fenced", "unknown", "stale-read")
RATE_SECONDS = 5.0
READY = ("ready", "switched", "deprecated", "rolled-back", "released", "archived")
DEPRECATED = ("deprecated", "released", "archived")
PHASES = ("preparation", "dual-write", "switchover", "cleanup", "done")


@dataclass
class Tail:
    """Counts events in growing logs; reads each byte once."""

    counts: Counter[str] = field(default_factory=Counter)
    _offsets: dict[Path, int] = field(default_factory=dict)

    def read(self, logs: Iterable[Path]) -> None:
        """Take in what was appended, whole lines only."""
        for path in logs:
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            end = text.rfind(b"\n") + 1
            self._offsets[path] = self._offsets.get(path, 0) + end
            for event in EVENTS:
                self.counts[event] += text.count(f'"event":"{event}"'.encode(), 0, end)


@dataclass(frozen=True)
class StageEvent:
    """A stage that was seen for the first time, in seconds since the migration began. service "": the migration."""

    at: float
    service: str
    stage: str


@dataclass
class Scene:
    """One look; `at` is when it began, so that what was done before is in it."""

    at: float
    overview: Overview
    stages: Mapping[str, str]
    traffic: Mapping[str, int]
    psql: Mapping[str, int]
    writes_per_second: float = 0.0

    def run(self, workflow_id: str) -> Status | None:
        return next((one for one in self.overview.runs if one.workflow_id == workflow_id), None)


def phase_of(found: Mapping[str, str], services: Sequence[str]) -> str:
    """The programme's phase by what the control database says."""
    if found.get("") == "cleaned":
        return "done"
    if found.get("", "registered") in ("", "registered"):
        return "preparation"
    if any(found.get(name, "") not in READY for name in services):
        return "dual-write"
    return "switchover" if any(found.get(name, "") not in DEPRECATED for name in services) else "cleanup"


@dataclass
class Watch:
    """The one that looks; all others use its last scene."""

    client: Client
    control: Control
    migration: str
    services: Sequence[str]
    traffic_logs: list[Path] = field(default_factory=list)
    psql_logs: list[Path] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    events: list[StageEvent] = field(default_factory=list)
    #: When each phase was first seen, in seconds since `begun`.
    phases: dict[str, float] = field(default_factory=dict)
    scene: Scene | None = None
    _traffic: Tail = field(default_factory=Tail)
    _psql: Tail = field(default_factory=Tail)
    _rates: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    async def look(self) -> Scene:
        """Ask everything once. Raises CutoverError where the control database does not answer."""
        at = self.seconds
        found, rows = await asyncio.gather(
            overview(self.client, self.control, self.migration), stages.get_stages(self.control, self.migration)
        )
        known = {service or "": str(row.stage) for service, row in rows.items()}
        self._traffic.read(self.traffic_logs)
        self._psql.read(self.psql_logs)
        self.scene = Scene(at, found, known, dict(self._traffic.counts), dict(self._psql.counts), self._rate())
        self.note(known, self.seconds)
        return self.scene

    def note(self, known: Mapping[str, str], at: float) -> None:
        """Keep stages and phases that are new."""
        last = {event.service: event.stage for event in self.events}
        self.events += [StageEvent(at, name, stage) for name, stage in known.items() if last.get(name) != stage]
        self.phases.setdefault(phase_of(known, self.services), at)

    def _rate(self) -> float:
        """Acknowledged rows a second over the last seconds."""
        now, acknowledged = time.monotonic(), self._traffic.counts["ok"]
        self._rates.append((now, acknowledged))
        while len(self._rates) > 2 and now - self._rates[0][0] > RATE_SECONDS:
            self._rates.popleft()
        then, before = self._rates[0]
        return (acknowledged - before) / (now - then) if now > then else 0.0

    async def run(self, every: float = 0.5) -> None:
        """Look until cancelled; an outage of a server is passed over, the next look may succeed."""
        while True:
            begun = time.monotonic()
            with suppress(CutoverError, RPCError):
                await self.look()
            await asyncio.sleep(max(0.05, every - (time.monotonic() - begun)))

    def durations(self) -> dict[str, float]:
        """Seconds by phase; the last one seen is still running and is left out."""
        seen = [(name, self.phases[name]) for name in PHASES if name in self.phases]
        return {name: round(end - start, 1) for (name, start), (_, end) in itertools.pairwise(seen)}
