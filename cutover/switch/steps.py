"""The steps of a switch, in their order: one list for the activity, the dry run, the doctor and the model.

A rollback after the write switch is the same list with the sides swapped (design 5.6).
"""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["before", "section", "after"]


@dataclass(frozen=True)
class Step:
    """One step; `undo` says in words what takes it back, empty where nothing has to be."""

    name: str
    phase: Phase
    does: str
    undo: str = ""


STEPS: tuple[Step, ...] = (
    Step("gates", "before", "measure every gate: differences, lag, approvals, transactions, catalogs, fences"),
    Step("make-ready", "before", "create and prove the stream of the other direction", "drop it"),
    Step("announce-pause", "section", "hold new transactions in every live instance", "lift the pause"),
    Step("fence", "section", "fence the primary; its commit ends the drain", "lift the fence"),
    Step("marker", "section", "put a marker and await it, durable, at the other side"),
    Step("sequences", "section", "raise the other side's sequences past the primary's"),
    Step("compare", "section", "compare the keys changed since the last verified pass; none may differ"),
    Step("turn", "section", "begin the new stream where it must not run beside the old one", "resume the old one"),
    Step("standbys", "section", "wait until the plan's standbys have flushed all of this, on both sides"),
    Step("unfence", "section", "lift the other side's fence, uncommitted", "roll back"),
    Step("journal", "section", "write the journal row: the point of no return"),
    Step("commit", "section", "commit the unfence"),
    Step("flip", "section", "flip the flags with the new epoch; the pause ends"),
    Step("finish", "after", "prove the new stream once more, drop the old one"),
)

SECTION: tuple[str, ...] = tuple(step.name for step in STEPS if step.phase == "section")
POINT_OF_NO_RETURN = "journal"
