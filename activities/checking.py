"""The checklist's automatic items of a phase, as a step of its run."""

from collections.abc import Collection
from typing import cast

from activities import models as m
from activities import signatures as s
from activities.context import Context
from activities.registration import implements
from cutover.checklist import run as checklist
from cutover.checklist.subject import Subject
from cutover.plan.models import Phase


async def check(context: Context, ref: m.Ref, phase: Phase, items: Collection[str] = ()) -> list[checklist.Checked]:
    """Check the items of a phase (only those named, if any): the service's own where the reference names one."""
    subject = Subject(await context.plan(ref), context.control, context.settings.database, ref.service)
    return await checklist.check(subject, phase, items)


class ChecklistActivities:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @implements(s.CHECKLIST)
    async def checklist(self, request: m.ChecklistRequest) -> m.Checklist:
        """Each item with what shows it, or what is wrong."""
        found = await check(self.context, request.ref, cast(Phase, request.phase))
        return m.Checklist(
            items=[
                m.ChecklistItem(
                    key=one.item.key,
                    text=one.item.text,
                    ok=one.holds,
                    evidence=("; ".join(one.problems) or one.evidence)[:300],
                )
                for one in found
            ]
        )
