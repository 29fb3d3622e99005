"""The Temporal Schedules that make a table's passes on its own cadence, held while the migration or the service is."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from activities import ids
from cutover.plan.models import Plan

TASK_QUEUE = "cutover"
#: Passes missed for longer than this are not made up for: the next one sees the same rows.
CATCHUP = timedelta(minutes=1)
#: The passes of all tables do not begin in the same moment.
JITTER = 0.1
#: How the note of a schedule that we hold begins; the runs that hold it follow.
HELD = "held with "


async def create(client: Client, plan: Plan, service: str, plan_hash: str) -> int:
    """One for each table of the service, or those that are there brought up to date; how many."""
    tables = plan.service(service).tables
    for table, rules in tables.items():
        every = plan.cadence(rules.reconcile.every)
        schedule = Schedule(
            action=ScheduleActionStartWorkflow(
                "ReconciliationWorkflow",
                {"plan": plan.migration, "service": service, "table": table, "plan_hash": plan_hash},
                id=ids.reconciliation(plan.migration, service, table),
                task_queue=TASK_QUEUE,
            ),
            spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)], jitter=every * JITTER),
            policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=CATCHUP),
        )
        try:
            await client.create_schedule(ids.schedule(plan.migration, service, table), schedule)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(ids.schedule(plan.migration, service, table)).update(
                _replacement(schedule)
            )
    return len(tables)


async def delete(client: Client, plan: Plan, service: str) -> None:
    """All of the service's; those that are gone already are no error."""
    for table in plan.service(service).tables:
        with _missing_is_fine():
            await client.get_schedule_handle(ids.schedule(plan.migration, service, table)).delete()


async def hold(client: Client, plan: Plan, service: str | None, run: str, *, held: bool) -> None:
    """Holds the schedules of a service (None: of all) while `run` is paused, or lets go what it held.

    One that two runs hold goes on when both let go; one that a person has paused by hand is left alone.
    """
    for name in [service] if service else list(plan.services):
        for table in plan.service(name).tables:
            with _missing_is_fine():
                await client.get_schedule_handle(ids.schedule(plan.migration, name, table)).update(_holding(run, held))


def holders(note: str, *, paused: bool) -> list[str] | None:
    """The runs that hold a schedule, from its note; None where a person has paused it."""
    if paused and not note.startswith(HELD):
        return None
    return note.removeprefix(HELD).split(", ") if paused else []


def _holding(run: str, held: bool) -> Callable[[ScheduleUpdateInput], Awaitable[ScheduleUpdate | None]]:
    async def update(former: ScheduleUpdateInput) -> ScheduleUpdate | None:
        schedule = former.description.schedule
        runs = holders(schedule.state.note or "", paused=schedule.state.paused)
        if runs is None or held == (run in runs):
            return None
        runs = sorted({*runs, run}) if held else [one for one in runs if one != run]
        schedule.state.paused = bool(runs)
        schedule.state.note = HELD + ", ".join(runs) if runs else ""
        return ScheduleUpdate(schedule)

    return update


def _replacement(schedule: Schedule) -> Callable[[ScheduleUpdateInput], Awaitable[ScheduleUpdate]]:
    async def update(former: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule.state = former.description.schedule.state  # one that is paused stays paused
        return ScheduleUpdate(schedule)

    return update


@contextmanager
def _missing_is_fine() -> Iterator[None]:
    try:
        yield
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
