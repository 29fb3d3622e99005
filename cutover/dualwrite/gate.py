"""A service's gate in one process: it knows the route, counts what runs, and holds requests during a pause.

Everything here happens in one event loop, so a check and the step after it are one, as long as nothing
is awaited between them. That is what `take` relies on.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from cutover.dualwrite.errors import HeldTooLong
from cutover.dualwrite.mirror import Mirror
from cutover.dualwrite.routing import Access, side_for
from cutover.flags.store import Route
from cutover.postgres.databases import Side

#: Seconds over which held requests are let go, so that they do not reach the new side in one instant.
SPREAD = 0.020
#: From this many held requests on the whole spread is used; fewer are let go sooner.
SPREAD_FULL_AT = 200
#: Requests that one service may hold at once.
MAX_HELD = 10_000
#: A pause without a limit of its own is treated as the plan's default.
DEFAULT_LIMIT = 5.0

Clock = Callable[[], float]


@dataclass
class Lease:
    """How long this process may believe its routes, on its own monotonic clock.

    While it holds, no switch can have passed its announced pause without this process's acknowledgement.
    """

    clock: Clock = time.monotonic
    until: float = 0.0
    #: Rises each time the lease was found to have run out; a read that began in an older one is not trusted.
    generation: int = 0

    @property
    def valid(self) -> bool:
        return self.clock() < self.until

    def extend(self, until: float) -> None:
        """A renewal was confirmed. One that comes after the end begins a new generation."""
        if not self.valid:
            self.generation += 1
        self.until = max(self.until, until)

    def unbroken(self, generation: int) -> bool:
        """Whether it has held without a gap since `generation` was read under a valid lease."""
        return self.valid and self.generation == generation


@dataclass(eq=False)
class Slot:
    """One running operation that a pause has to wait for."""

    service: str
    route: Route
    side: Side
    transaction: bool
    running: bool = True
    #: Who knows that what it writes is not at both sides when it is answered.
    behind: Mirror | None = None
    #: The stream by which a read at the other side has all that was written.
    rests_on: str = ""

    @property
    def at_primary(self) -> bool:
        return self.side == self.route.primary_side


@dataclass
class Counters:
    """What happened to one service's requests in this process, since it was opened."""

    requests: int = 0
    held: int = 0
    held_too_long: int = 0
    retried: int = 0
    fenced: int = 0
    unknown: int = 0
    failed: int = 0
    #: Strong writes that are done, but whose branch at the other side was left to the janitor or was not there.
    in_doubt: int = 0
    #: Samples of reads: compared and settled, of these unlike the other side, and passed over.
    verified: int = 0
    mismatches: int = 0
    unverified: int = 0
    pauses: int = 0
    longest_wait_ms: float = 0.0
    longest_pause_ms: float = 0.0

    def waited(self, seconds: float) -> None:
        self.longest_wait_ms = max(self.longest_wait_ms, seconds * 1000)


_slots: ContextVar[tuple[Slot, ...]] = ContextVar("cutover_slots", default=())


def running_slots() -> Iterator[Slot]:
    """The slots that the present task runs inside, innermost first. A task that outlives its parent's has none."""
    return (slot for slot in reversed(_slots.get()) if slot.running)


@dataclass(eq=False)
class Gate:
    """Holds and lets go; see the module's text."""

    route: Route
    lease: Lease
    #: Called when the last running operation has ended while a pause is on: it may be acknowledged now.
    drained: Callable[[], None] = lambda: None
    max_held: int = MAX_HELD
    counters: Counters = field(default_factory=Counters)
    #: What the other side has of this process's writes; None where the service has no such stream.
    mirror: Mirror | None = None

    def __post_init__(self) -> None:
        self._running: set[Slot] = set()
        self._waiting = 0
        self._changed = asyncio.Event()
        self._pause_seen = 0.0
        self.revision_seen = self.route.revision

    @property
    def service(self) -> str:
        return self.route.service

    @property
    def acknowledgeable(self) -> str | None:
        """The pause that stands, once nothing runs any more."""
        return None if self._running else self.route.pause_id

    @property
    def holding(self) -> bool:
        """Whether new operations are held now.

        A pause that has reached its limit while the control database is out of reach binds nobody: whoever
        announced it may be gone. The fences and the epoch rows decide then.
        """
        if not self.route.paused:
            return False
        return self.lease.valid or self.lease.clock() < self._pause_seen + self._limit

    @property
    def _limit(self) -> float:
        return self.route.pause_limit_ms / 1000 if self.route.pause_limit_ms else DEFAULT_LIMIT

    def apply(self, route: Route) -> bool:
        """Takes over a route read from the control database; older revisions and epochs are passed over."""
        self.revision_seen = max(self.revision_seen, route.revision)
        if route.revision <= self.route.revision or route.epoch < self.route.epoch:
            return False
        self._replace(route)
        return True

    def adopt(self, side: Side, epoch: int) -> None:
        """Takes over what the databases' epoch rows say, while the control database cannot be asked."""
        service = side == "service"
        self._replace(
            replace(
                self.route,
                primary_side=side,
                epoch=max(epoch, self.route.epoch),
                write_to_new_primary=service,
                read_from_new=service or self.route.read_from_new,
                percentage=100 if service else self.route.percentage,
                pause_id=None,
                pause_started_at=None,
                pause_limit_ms=None,
            )
        )

    def _replace(self, route: Route) -> None:
        now = self.lease.clock()
        if self.route.paused and route.pause_id != self.route.pause_id:
            self.counters.longest_pause_ms = max(self.counters.longest_pause_ms, (now - self._pause_seen) * 1000)
        if route.paused and route.pause_id != self.route.pause_id:
            self._pause_seen = now
            self.counters.pauses += 1
        self.route = route
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, within: float) -> bool:
        """Waits until the route is another one, for `within` seconds at most."""
        try:
            async with asyncio.timeout(within):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def side(self, access: Access, inside: Slot | None = None) -> Side:
        """Where the operation goes now; what runs inside a slot at the primary stays with it.

        Without a valid lease nobody says whether the other side still follows, so then the primary answers.
        """
        if inside is not None and inside.at_primary:
            return inside.side
        mirrored = self.mirror is not None and self.lease.valid and self.mirror.complete
        return side_for(self.route if inside is None else inside.route, access, mirrored=mirrored)

    def mirrored_by(self, mirror: Mirror | None) -> None:
        """Another one counts from now on; what runs is counted by it too, whoever counted it before."""
        self.mirror = mirror
        for slot in self._running:
            self._caught_up(slot)
            self.falls_behind(slot)

    def falls_behind(self, slot: Slot | None) -> None:
        """The slot's writes will not be at both sides when they are answered; said before the first of them."""
        if self.mirror is not None and slot is not None and slot.side == "monolith" and slot.behind is None:
            slot.behind = self.mirror
            self.mirror.begin()

    def _caught_up(self, slot: Slot) -> None:
        if slot.behind is not None:
            slot.behind.end()
            slot.behind = None

    async def admitted(self, since: float | None) -> float | None:
        """Returns once nothing is held; with the moment from which this request has been held, None if it was not.

        `since` is that moment, for a request that was held before. Raises HeldTooLong.
        """
        if not self.holding:
            return since
        if self._waiting >= self.max_held:
            self.counters.held_too_long += 1
            raise HeldTooLong(
                f"{self.service}: {self._waiting} requests are held already while its writes move; try again soon"
            )
        if since is None:
            since = self.lease.clock()
            self.counters.held += 1
        self._waiting += 1
        try:
            while self.holding:
                limit = self._limit
                left = since + limit - self.lease.clock()
                if left <= 0:
                    self.counters.held_too_long += 1
                    raise HeldTooLong(
                        f"{self.service}: held for {limit:g} s while its writes move; nothing was sent, try again"
                    )
                await self.changed(left)
                if not self.holding:
                    spread = SPREAD * min(1.0, self._waiting / SPREAD_FULL_AT)
                    await asyncio.sleep(random.uniform(0, spread))
        finally:
            self._waiting -= 1
            self.counters.waited(self.lease.clock() - since)
        return since

    def take(self, access: Access, side: Side, *, transaction: bool, inside: Slot | None) -> Slot | None:
        """A slot at that side; None if the gate has closed or the route has turned since `side` was chosen."""
        if (inside is None and self.holding) or self.side(access, inside) != side:
            return None
        slot = Slot(self.service, self.route if inside is None else inside.route, side, transaction)
        if self.mirror is not None and not slot.at_primary:
            slot.rests_on = self.mirror.stream
        self._running.add(slot)
        return slot

    def enter(self, slot: Slot) -> None:
        """Makes the slot known to the present task."""
        _slots.set((*_slots.get(), slot))

    def leave(self, slot: Slot) -> None:
        """Ends the slot, in whatever order and task: sessions of an engine need not be nested."""
        _slots.set(tuple(other for other in _slots.get() if other is not slot))
        slot.running = False
        self._caught_up(slot)
        self._running.discard(slot)
        if self.route.paused and not self._running:
            self.drained()

    def inside(self) -> Slot | None:
        """The slot of this very service that the present task runs in: what it starts belongs to it."""
        return next((slot for slot in running_slots() if slot.service == self.service), None)
