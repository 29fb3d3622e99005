"""What the model knows of the world at one moment: two databases, two streams, the control database, who acts.

Everything is immutable and hashable; an action makes a new state. Sides are 0 (monolith) and 1 (service).
Versions of rows are the numbers that the sides' sequences give out, so a number given twice is a version used twice.
"""

from typing import NamedTuple, TypeVar

T = TypeVar("T")

Pair = tuple[T, T]
#: An application's open transaction: the side and the key that it writes.
Transaction = tuple[int, int]

SIDES = ("monolith", "service")
SETTLED = frozenset({"idle", "undone", "done"})


#: Actor and deed, sides as numbers; formatted where somebody reads it.
Label = tuple[str | int, ...]


class Broken(Exception):
    """An invariant does not hold; the text says which one and how, `during` which move broke it."""

    during: Label = ()

    def by(self, label: Label) -> "Broken":
        """The same, with the move that broke it."""
        self.during = label
        return self


class Stale(Exception):
    """A newer attempt owns the switch, as `StaleAttempt` in the code: this one stops."""


class Failed(Exception):
    """A step failed for another reason; the attempt goes on with recovery."""


class Attempt(NamedTuple):
    """One process in the fenced section: `pc` names the part that it does next."""

    token: int
    pc: str
    switch: int
    to: int
    old: int
    new: int
    #: Its unfence at `to` is executed and not committed.
    unfencing: bool = False


class Row(NamedTuple):
    """The one row of the control database that is the truth of a switch."""

    state: str
    token: int
    switch: int
    to: int
    old: int
    new: int


class Route(NamedTuple):
    """The flags: where the applications write, at which epoch, and whose pause stands (0: nobody's)."""

    side: int
    epoch: int
    pause: int


class Run(NamedTuple):
    """The workflow around the section. It is durable: it goes on where it was."""

    pc: str
    switch: int
    to: int


class Library(NamedTuple):
    """A writer through the library. `live` knows the route, `held` has acknowledged the pause, `late` has lost its
    lease and goes on by the side that it knew.
    """

    mode: str
    knows: int
    open: Transaction | None


class Left(NamedTuple):
    """What may still happen in this run; without bounds there would be no end."""

    writes: int
    crashes: int
    sleeps: int
    switches: int


class State(NamedTuple):
    closed: Pair[bool]
    #: The epoch row of each side: number and primary side, as that database knows them.
    epoch: Pair[tuple[int, int]]
    token: Pair[int]
    sequence: Pair[int]
    #: Rows that are on disk: the version of each of two keys, 0 where there is none.
    rows: Pair[Pair[int]]
    #: By source: changes that are not on the other side's disk, oldest first; None where there is no stream.
    #: A row is `version * 2 + key`, a marker is minus the number of its switch.
    queue: Pair[tuple[int, ...] | None]
    #: How many of them are applied and visible at the other side, and would be lost in a crash there.
    visible: Pair[int]
    #: The newest marker on each side's disk.
    seen: Pair[int]
    row: Row
    route: Route
    library: Library
    bypass: Transaction | None
    attempts: tuple[Attempt, ...]
    run: Run
    #: By source: an activity that has seen that this stream may be dropped, and sleeps before it drops it.
    late_drop: Pair[bool]
    left: Left
    #: What no database holds, and the invariants speak of: the newest version of each key whose write was
    #: acknowledged, and the side and epoch of the newest journal.
    acked: Pair[int]
    truth: tuple[int, int]


def start(left: Left) -> State:
    """Preparation is over and the forward stream runs: writes at the monolith, the service's side shut."""
    return State(
        closed=(False, True),
        epoch=((0, 0), (0, 0)),
        token=(0, 0),
        sequence=(0, 0),
        rows=((0, 0), (0, 0)),
        queue=((), None),
        visible=(0, 0),
        seen=(0, 0),
        row=Row("idle", 0, 0, 0, 0, 0),
        route=Route(0, 0, 0),
        library=Library("live", 0, None),
        bypass=None,
        attempts=(),
        run=Run("idle", 0, 0),
        late_drop=(False, False),
        left=left,
        acked=(0, 0),
        truth=(0, 0),
    )


def put(pair: Pair[T], side: int, value: T) -> Pair[T]:
    """The pair with that side's value."""
    return (value, pair[1]) if side == 0 else (pair[0], value)


def applied(rows: Pair[int], changes: tuple[int, ...], side: int) -> Pair[int]:
    """The rows after these changes. Raises Broken where one of them is older than the row that it overwrites."""
    for change in changes:
        if change > 0:
            version, key = divmod(change, 2)
            if version < rows[key]:
                raise Broken(
                    f"no stale write wins: at the {SIDES[side]} version {version} of key {key} overwrites {rows[key]}"
                )
            rows = put(rows, key, version)
    return rows


def shown(state: State, side: int) -> Pair[int]:
    """The rows of that side as a reader sees them, what is not on disk yet included."""
    count = state.visible[1 - side]
    if not count:
        return state.rows[side]
    return applied(state.rows[side], (state.queue[1 - side] or ())[:count], side)


def flushed(state: State, side: int) -> State:
    """After a synchronous commit at that side all that was visible there is on disk."""
    source = 1 - side
    count = state.visible[source]
    if not count:
        return state
    queue = state.queue[source] or ()
    markers = [-change for change in queue[:count] if change < 0]
    return state._replace(
        rows=put(state.rows, side, shown(state, side)),
        queue=put(state.queue, source, queue[count:]),
        visible=put(state.visible, source, 0),
        seen=put(state.seen, side, max([state.seen[side], *markers])),
    )


def marker_shown(state: State, side: int, marker: int) -> bool:
    """Whether the marker is visible at that side."""
    if state.seen[side] >= marker:
        return True
    return -marker in (state.queue[1 - side] or ())[: state.visible[1 - side]]


def locked(state: State, side: int) -> bool:
    """Whether an unfence that is not committed keeps that side's tables."""
    return any(attempt.unfencing and attempt.to == side for attempt in state.attempts)


def written(state: State, side: int) -> bool:
    """Whether a transaction of an application is open at that side: no fence is enabled or lifted meanwhile."""
    bypass, library = state.bypass, state.library.open
    return (bypass is not None and bypass[0] == side) or (library is not None and library[0] == side)
