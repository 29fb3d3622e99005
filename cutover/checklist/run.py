"""The checklist's automatic items, checked: one function an item, each answer kept with its evidence.

A database that is away, or a stream that lags, is raised and so waited out by whoever asks; whatever else a check
cannot read counts as not in order (invariant 6).
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from cutover.checklist import cleanup, preparation, streaming, switching
from cutover.checklist.subject import Subject, Verdict
from cutover.control import checks
from cutover.errors import CutoverError, NotYet, Unreachable
from cutover.plan import checklist
from cutover.plan.checklist import Item
from cutover.plan.models import Phase

Check = Callable[[Subject], Awaitable[Verdict]]

CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        preparation.service_schemas,
        preparation.schemas_match_source,
        preparation.reconciliation_dashboard,
        streaming.cdc_pipeline,
        streaming.cdc_replicating_correctly,
        streaming.data_validation_scripts,
        streaming.dashboard_operational,
        switching.error_rates_monitored,
        switching.hourly_consistency_reports,
        switching.rollback_command_ready,
        cleanup.data_verified,
        cleanup.full_reconciliation,
        cleanup.benchmarks_match_baseline,
        cleanup.dual_write_disabled,
        cleanup.tables_archived,
        cleanup.feature_flags_removed,
    )
}


@dataclass(frozen=True)
class Checked:
    """An item and what its check said."""

    item: Item
    problems: tuple[str, ...]
    evidence: str

    @property
    def holds(self) -> bool:
        return not self.problems


async def check(subject: Subject, phase: Phase, items: Collection[str] = ()) -> list[Checked]:
    """Checks the automatic items of a phase (only those named, if any) and keeps each answer.

    Items about a service are checked for the subject's service; a subject without one leaves them out.
    """
    found = []
    for item in checklist.items(phase, "automatic"):
        if (items and item.key not in items) or item.each_service != bool(subject.service):
            continue
        said = await _ask(CHECKS[item.key], subject)
        await checks.record(
            subject.control, subject.migration, item, subject.service, said.problems, said.evidence
        )  # fmt: skip
        found.append(Checked(item, said.problems, said.evidence))
    return found


async def _ask(check: Check, subject: Subject) -> Verdict:
    try:
        return await check(subject)
    except (Unreachable, NotYet):
        raise
    except CutoverError as error:
        return Verdict((f"cannot be read: {error}",), "")


def problems_of(found: Collection[Checked]) -> list[str]:
    """All that does not hold, each with the item that it is about."""
    return [f"{one.item.text}: {problem}" for one in found for problem in one.problems]
