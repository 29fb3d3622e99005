"""Fault points: the places at which the chaos harness and tests make the product fail.

    async with faults.step("switch.fence"):     # the points switch.fence.before and switch.fence.after
        …

Every effect of a protocol stands in a step that is listed here; a test requires it
(tests/switch/test_fault_points.py), which names what stands in none, and why. A point costs nothing while nobody
has armed it, and nothing in the product arms one: `chaos` does, in processes of its own. They are listed by
`cutover doctor --fault-points`.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

#: What is told of each point that is passed; it may end the process, raise, or take its time.
Handler = Callable[[str], Awaitable[None]]

#: What is done between the two points of each step.
STEPS: dict[str, str] = {
    # the write switch and the rollback: before and inside the fenced section (those of `switch.steps.SECTION`)
    "switch.token": "an attempt draws its token in the control database",
    "switch.seize": "its token is raised at a side, after every older attempt's session there was ended",
    "switch.clear": "connections are opened and what is in the way is waited out",
    "switch.begin": "the control database's row says that a switch has begun",
    "switch.announce-pause": "the pause is announced and acknowledged",
    "switch.fence": "the primary is fenced, which the row says too",
    "switch.fence-commit": "the fence's own transaction",
    "switch.marker": "a marker is put and is durable at the other side",
    "switch.sequences": "the other side's sequences are raised",
    "switch.compare": "the changed keys are compared, and the record of the way back begins",
    "switch.turn": "where directions take turns the stream is turned round",
    "switch.standbys": "the plan's standbys have flushed all of it",
    "switch.unfence": "the other side's fence is lifted, uncommitted",
    "switch.journal": "the journal row, the point of no return",
    "switch.commit": "the unfence is committed",
    "switch.flip": "the route is flipped and the pause ends",
    "switch.done": "the outcome is recorded",
    # its step `turn`, in parts: `logical` with a server below 16
    "turn.renew": "before the pause the slot of the armed stream is made anew",
    "turn.halt": "the stream that runs is disabled, and its worker seen gone",
    "turn.begin": "the slot of the armed stream is moved to now, and its subscription enabled",
    "turn.prove": "it carries a marker",
    # the compensation of a switch that was not journaled
    "undo.decide": "the row says undoing, so that nobody can journal",
    "undo.open": "the old primary is opened",
    "undo.resume": "the pause is lifted",
    "undo.shut": "the other side is shut",
    "undo.halt": "a stream that was begun is disabled again, and its worker seen gone",
    "undo.resume-stream": "its proof is forgotten, and the stream that was halted runs again",
    "undo.reopen": "the old primary is opened while the control database does not answer",
    # a journaled switch that stopped is finished forwards
    "complete.marker": "the marker's durability is awaited once more",
    "complete.open": "the new primary is opened",
    "complete.flip": "the route is flipped",
    "complete.shut": "the old primary is shut",
    "recovery.done": "the outcome of an undone or completed switch is recorded",
    # the stream of the way back
    "ready.keep": "refused changes are not given up any more (best_effort is raised to eventual)",
    "ready.drop": "a lost stream of the other direction is dropped",
    "ready.prepare": "the stream of the other direction is prepared",
    "ready.changed": "the record of its changed keys begins",
    "ready.arm": "the stream is armed, where directions take turns",
    "ready.start": "the stream is started",
    "ready.prove": "it carries a marker",
    "take-back.changed": "the record of a way back that was not needed is dropped",
    "take-back.stream": "its stream is dropped",
    "finish.prove": "after a switch the new direction carries a marker",
    "finish.changed": "the record of the old direction is dropped",
    "finish.stream": "the old stream is dropped",
    "rebuild.note": "it is noted that a lost stream is built anew",
    "rebuild.drop": "what is left of a lost stream is dropped",
    "rebuild.make": "it is made anew",
    "rebuild.follow": "the record of changed keys is made anew, where it alone was lost",
    "rebuild.mend": "a table is compared and mended",
    "rebuild.stand": "rows at the sink give way to the stream no longer",
    # what the doctor mends beside them
    "mend.lift": "a pause that was left is lifted",
    "mend.fences": "the fences are set by the route",
    # foreign keys that cross services
    "keys.detach": "a key that crosses services is taken off the monolith",
    "keys.restore": "a key is put back, for new rows",
    "keys.validate": "it is validated, and noted as being there",
    # the outbox
    "backfill.range": "a range of the first copy is copied and noted, in one transaction",
    "backfill.sweep": "rows that were deleted meanwhile are deleted from a copied table",
    "relay.apply": "a batch is applied",
    "relay.forget": "its intents are deleted at the source",
    "relay.hold": "a key that is refused is held in quarantine",
    "relay.tidy": "version rows that guard against nothing are deleted",
    "strong.read": "a strong write reads its own changes and writes its decision, uncommitted",
    "strong.apply": "its branch applies them",
    "strong.prepare": "the branch is prepared",
    "strong.commit": "the primary commits, and the decision with it",
    "strong.end": "the branch is committed",
    "janitor.decide": "the outcome of a branch in doubt is decided",
    "janitor.end": "the branch is ended by it",
    # what goes on beside
    "repair.write": "a batch of differing rows is mended",
    "cleanup.streams": "streams and records of changed keys are dropped",
    "cleanup.ours": "fences, epochs and our schema at the service's side are dropped",
    "cleanup.last": "epochs and our schema at the monolith are dropped, after its tables",
    "archive.export": "a table is exported",
    "archive.prove": "the archive is loaded back, and its manifest says so",
    "retire.rename": "a table of the monolith is renamed",
    "retire.drop": "a renamed table is dropped",
}

_handler: Handler | None = None


def points() -> list[str]:
    """All points, in the order of STEPS."""
    return [f"{name}.{place}" for name in STEPS for place in ("before", "after")]


@contextmanager
def armed(handler: Handler) -> Iterator[None]:
    """Has the handler told of every point that this process passes inside the block."""
    global _handler
    former, _handler = _handler, handler
    try:
        yield
    finally:
        _handler = former


class step:  # reads as a statement
    """One step of STEPS. A point `after` is passed where the step did not raise."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    async def __aenter__(self) -> None:
        if _handler is not None:
            await _handler(f"{self.name}.before")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _handler is not None and kind is None:
            await _handler(f"{self.name}.after")
