"""What a switch works with: the plan, the two databases, the control database."""

from dataclasses import dataclass

from cutover.control.database import Control
from cutover.plan.models import Plan, Service
from cutover.postgres.databases import Direction, Pair
from cutover.reconcile.changed import ChangedKeys
from cutover.streams import open_stream
from cutover.streams.base import Stream

#: More changed keys than this are not compared inside the fence; then a pass has to come first.
TAIL_LIMIT = 20_000


@dataclass(frozen=True)
class SwitchEnvironment:
    plan: Plan
    pair: Pair
    control: Control

    @property
    def service(self) -> Service:
        return self.plan.service(self.pair.service)

    @property
    def max_pause(self) -> float:
        """Seconds; a limit, never compressed."""
        return self.plan.switchover.max_write_pause.total_seconds()

    def stream(self, direction: Direction) -> Stream:
        return open_stream(self.pair, direction, self.service)

    def changed(self, direction: Direction) -> ChangedKeys:
        return ChangedKeys(self.pair, direction, self.control)
