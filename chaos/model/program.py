"""The program that the attempts and the run follow, made from the list of steps of the code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from chaos.model.effects import Rules
from chaos.model.recovery import COMPLETE, UNDO
from chaos.model.section import ACTIONS, Part, require_same_names
from cutover.switch.steps import POINT_OF_NO_RETURN, STEPS, Step

#: The parts around the section: `clear_the_way` and `begin` before it, the last compare-and-set after it.
SEIZE, BEGIN, END = "clear the way", "begin", "end"
IDLE, SECTION = "idle", "section"


@dataclass(frozen=True)
class Program:
    """Parts by label, and what follows what. `undoable`: parts of the section whose error leads to undo."""

    parts: Mapping[str, Part]
    after: Mapping[str, str]
    undoable: frozenset[str]
    section: frozenset[str]
    #: The labels at which the unfence is executed and left open, and committed.
    unfences: str
    first_undo: str
    first_complete: str
    first_before: str
    first_after: str
    rules: Rules


def build(
    steps: Iterable[Step] | None = None,
    actions: Mapping[str, tuple[Part, ...]] = ACTIONS,
    undo: Mapping[str, Part] = UNDO,
    complete: Mapping[str, Part] = COMPLETE,
    rules: Rules = Rules(),  # noqa: B008 (frozen)
) -> Program:
    """The program of that list, by default the code's own. Raises ValueError where names differ."""
    steps = tuple(STEPS if steps is None else steps)
    require_same_names([step.name for step in steps], actions)
    parts: dict[str, Part] = {**undo, **complete}
    labels: dict[str, list[str]] = {"before": [], "section": [], "after": []}
    undoable: set[str] = set()
    for phase in labels:
        may_be_undone = True
        for step in (step for step in steps if step.phase == phase):
            for part in actions[step.name]:
                label = step.name if len(actions[step.name]) == 1 else f"{step.name} ({part.__name__})"
                if label in parts:
                    raise ValueError(f"two parts of the model are called {label!r}: name them apart")
                parts[label] = part
                labels[phase].append(label)
                if phase == "section" and may_be_undone:
                    undoable.add(label)
            may_be_undone = may_be_undone and step.name != POINT_OF_NO_RETURN
    after: dict[str, str] = {}
    for chain in (
        [*labels["before"], SECTION],
        [SEIZE, BEGIN, *labels["section"], END],
        [*labels["after"], IDLE],
        [*undo, ""],
        [*complete, ""],
    ):
        after.update(pairwise(chain))
    return Program(
        parts=parts,
        after=after,
        undoable=frozenset(undoable),
        section=frozenset(labels["section"]),
        unfences="unfence",
        first_undo=next(iter(undo)),
        first_complete=next(iter(complete)),
        first_before=[*labels["before"], SECTION][0],
        first_after=[*labels["after"], IDLE][0],
        rules=rules,
    )
