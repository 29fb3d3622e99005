"""A pass as the workflow makes it: opened, its spans walked, finished."""

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from activities import models as m
from activities.reconciliation import ReconciliationActivities

Perform = Callable[[Any, Any], Awaitable[Any]]
_numbers = itertools.count(1)


async def make_pass(perform: Perform, activities: ReconciliationActivities, ref: m.Ref, table: str) -> m.PassResult:
    """One pass over a table, by `perform(activity, argument)`."""
    request = m.PassRequest(ref=ref, table=table, pass_id=f"pass {next(_numbers)}")
    opened: m.PassOpened = await perform(activities.open_pass, request)
    for number in range(1, opened.spans + 1):
        await perform(activities.walk_span, m.SpanRequest(**dict(request), number=number))
    result: m.PassResult = await perform(activities.finish_pass, request)
    return result
