"""What a check looks at, and what it says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cutover.control.database import Control
from cutover.pairs import pair
from cutover.plan.models import Plan
from cutover.postgres.databases import Database, Direction, Pair
from cutover.streams import open_stream
from cutover.streams.base import Stream


@dataclass(frozen=True)
class Subject:
    """A migration, or one service of it."""

    plan: Plan
    control: Control
    database: Callable[[str], Database]
    service: str | None = None

    @property
    def migration(self) -> str:
        return self.plan.migration

    @property
    def services(self) -> tuple[str, ...]:
        """The one it is about, else all."""
        return (self.service,) if self.service else tuple(self.plan.services)

    def pair(self, service: str) -> Pair:
        return pair(self.plan, service, self.database)

    def stream(self, service: str, direction: Direction) -> Stream:
        return open_stream(self.pair(service), direction, self.plan.service(service))


@dataclass(frozen=True)
class Verdict:
    """What is wrong (nothing: the item holds), and what shows it: names, counts and times, never a row's values."""

    problems: tuple[str, ...]
    evidence: str


def verdict(problems: Sequence[str], evidence: str) -> Verdict:
    return Verdict(tuple(problems), evidence)
