"""What the watches of one look at one service share: sessions, the route of now, and how a finding is worded."""

from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from cutover.alerts.store import Severity
from cutover.control.database import Control
from cutover.control.switches import Still
from cutover.monitor.findings import Finding, Watch
from cutover.plan.models import Plan
from cutover.postgres.databases import Direction, Pair, Side, direction_from, other
from cutover.postgres.identifiers import TableName
from cutover.streams import open_stream
from cutover.streams.base import Stream


@dataclass(frozen=True)
class Place:
    """One service at one moment. `members`: its tables with their partitions, at each side that can be read."""

    control: Control
    plan: Plan
    pair: Pair
    now: Still
    sessions: Mapping[Side, asyncpg.Connection]
    members: Mapping[Side, tuple[TableName, ...]]
    #: A fence that never was is made.
    mend: bool

    @property
    def service(self) -> str:
        return self.pair.service

    @property
    def primary(self) -> Side:
        return self.now.primary_side

    @property
    def shut(self) -> Side:
        """The side that takes no writes of applications."""
        return other(self.now.primary_side)

    @property
    def direction(self) -> Direction:
        """In which rows flow now: what a lossless way to the other side rests on."""
        return direction_from(self.now.primary_side)

    @property
    def streaming(self) -> bool:
        """Whether a stream has to be there: from the end of its first copy on."""
        return self.now.stage not in ("", "released", "archived")

    @property
    def stream(self) -> Stream:
        return open_stream(self.pair, self.direction, self.plan.service(self.service))

    @property
    def doctor(self) -> str:
        """The command that shows all that is true of the service."""
        return f"cutover doctor {self.pair.migration} --service {self.service}"

    @property
    def rebuild(self) -> str:
        """The command that builds the stream of now anew and mends what it missed."""
        return f"{self.doctor} --rebuild-stream"

    @property
    def compare(self) -> str:
        """The command that compares every row of the service now."""
        return f"cutover reconcile {self.pair.migration} --service {self.service} --now"

    def finding(self, watch: Watch, severity: Severity, subject: str, text: str, remedy: str) -> Finding:
        return Finding(watch, severity, self.service, subject, text, remedy)
