"""What the processes of a run do: the programme's own parts, each with the faults that it was armed with.

An attempt performs the activities of a write switch one after the other, as a worker does for the workflow; the driver
takes the part of Temporal: it calls again what did not return, and starts a second attempt when heartbeats stop.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.cleanup import CleanupActivities
from activities.context import Context
from activities.models import Ref
from chaos import bypass, traffic
from chaos.ground import Place, copy
from chaos.injection import Injector, handler, resets
from chaos.processes import Say
from cutover import faults
from cutover.control import reports
from cutover.errors import CutoverError
from cutover.plan.models import Table
from cutover.postgres.databases import DIRECTIONS, FAILURES, Direction, Side
from cutover.reconcile.conflicts import resolve
from cutover.reconcile.passes import Job, run_pass
from cutover.streams.base import settling
from cutover.streams.outbox import Relay, relay
from cutover.streams.outbox.janitor import Janitor
from cutover.switch import finish, mending, reverse, section
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchRequest
from cutover.switch.rebuild import follow_anew, rebuild

SOURCE_WINS = Table(conflict="source-wins", alert_on_conflict=False)
#: The activities of a write switch, in their order.
Stage = Literal["ready", "section", "finish"]
Compensation = Literal["take-back", "rebuild", "follow"]
STAGES: tuple[Stage, ...] = ("ready", "section", "finish")

#: A killed relay's shards are taken over after this; the product's own is longer.
LEASE_SECONDS = 1.0


@asynccontextmanager
async def _armed(injectors: Sequence[Injector]) -> AsyncIterator[None]:
    with faults.armed(handler(injectors)), resets():
        yield


async def _telling(say: Say, work: Coroutine[Any, Any, Any]) -> None:
    """Tells the result, or the error in words; the process then ends."""
    try:
        say("done", await work)
    except (CutoverError, ApplicationError) as error:
        say("failed", (type(error).__name__, str(error)))
    except FAILURES as error:  # the server's own text may hold values
        say("failed", (type(error).__name__, ""))


def request(place: Place, to_side: Side, switch_id: str) -> SwitchRequest:
    return SwitchRequest(
        migration=place.migration,
        service=place.service,
        switch_id=switch_id,
        to_side=to_side,
        plan_hash=place.plan.hash,
    )


async def attempt(
    say: Say, place: Place, to_side: Side, switch_id: str, stage: Stage, injectors: Sequence[Injector]
) -> None:
    """One activity of a write switch; says `heartbeat` and, at its end, `done` or `failed`."""
    heartbeat: Callable[[str], None] = lambda step: say("heartbeat", step)  # noqa: E731

    async def work(env: SwitchEnvironment) -> Any:
        match stage:
            case "ready":
                return await reverse.make_ready(env, to_side)
            case "section":
                order = request(place, to_side, switch_id)
                return (await section.run(env, order, heartbeat)).model_dump(mode="json")
            case "finish":
                return await finish.finish(env, request(place, to_side, switch_id))

    async with place.opened() as env, _armed(injectors):
        await _telling(say, work(env))


async def compensation(
    say: Say,
    place: Place,
    name: Compensation,
    to_side: Side,
    injectors: Sequence[Injector],
) -> None:
    """What takes a way back away that was not needed, or builds a lost stream or record of changed keys anew."""
    async with place.opened() as env, _armed(injectors):
        match name:
            case "take-back":
                await _telling(say, reverse.take_back(env, to_side))
            case "rebuild":
                await _telling(say, _nothing(rebuild(env, lambda _: None)))
            case "follow":
                await _telling(say, _nothing(follow_anew(env, lambda _: None)))


async def repair(say: Say, place: Place, direction: Direction, injectors: Sequence[Injector]) -> None:
    """Passes and repairs of every table, until nothing differs."""

    async def work(env: SwitchEnvironment) -> None:
        settle = settling(env.stream(direction), 20.0)
        for table in env.pair.tables:
            # a pass of its own each time: one that has its report would only give it again
            while (
                await run_pass(Job(env.pair, direction, table, SOURCE_WINS, env.control, env.plan.hash, settle))
            ).differences:
                found = await reports.open_differences(env.control, place.migration, place.service, str(table))
                await resolve(env.pair, direction, table, SOURCE_WINS, found, env.control, settle, actor="chaos")

    async with place.opened() as env, _armed(injectors):
        await _telling(say, work(env))


#: What follows the end of a service's way back, in its order.
CLEANUP = ("drop_machinery", "archive_tables", "rename_tables", "drop_tables")


async def cleanup(say: Say, place: Place, step: str, injectors: Sequence[Injector]) -> None:
    """One activity of the cleanup, outside of Temporal."""
    async with place.opened() as env, _armed(injectors):
        activities = CleanupActivities(Context(place.settings, env.control))
        ref = Ref(migration=place.migration, plan_hash=env.plan.hash, service=place.service)
        await _telling(say, _nothing(ActivityEnvironment().run(getattr(activities, step), ref)))


async def mend(say: Say, place: Place, injectors: Sequence[Injector]) -> None:
    """`cutover doctor --mend`."""
    async with place.opened() as env, _armed(injectors):
        await _telling(say, mending.mend(env, lambda _: None))


async def _nothing(work: Coroutine[Any, Any, Any]) -> None:
    await work


async def relays(say: Say, place: Place, injectors: Sequence[Injector]) -> None:
    """What the level has of a relay for each direction and a janitor, until SIGTERM."""
    relay._TIDY_SECONDS = 0.5
    ending = _stopped_by_a_signal()
    async with place.opened() as env, _armed(injectors):
        janitor = Janitor(env.pair, env.control)

        async def tidy() -> None:
            while True:
                with suppress(*FAILURES):
                    await janitor.resolve(older_than=1.0)
                await asyncio.sleep(0.3)

        outbox, strong = env.service.stream == "outbox", env.service.consistency == "strong"
        works = [Relay(env.pair, direction, lease_seconds=LEASE_SECONDS).run() for direction in DIRECTIONS if outbox]
        tasks = [asyncio.create_task(work) for work in (*works, *([tidy()] if strong else []))]
        say("ready", None)
        waiting = asyncio.create_task(ending.wait())
        ended, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, waiting):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        if waiting not in ended:
            for error in results:
                if isinstance(error, BaseException):
                    say("failed", (type(error).__name__, repr(error)))


async def first_copy(say: Say, place: Place, injectors: Sequence[Injector]) -> None:
    """The first copy, until it is done."""
    async with place.opened() as env, _armed(injectors):
        await _telling(say, _nothing(copy(env)))


async def client(say: Say, place: Place, options: traffic.Options, injectors: Sequence[Injector]) -> None:
    """A client over the library, until SIGTERM or its faults."""
    stop = _stopped_by_a_signal()
    say("ready", None)
    async with _armed(injectors):
        say("done", await traffic.run(options, place.control, place.database, place.database, stop))


async def bypass_writers(say: Say, place: Place, options: bypass.Options) -> None:
    """Writers at both sides that know nothing of the migration, until SIGTERM."""
    stop = _stopped_by_a_signal()
    say("ready", None)
    say("done", await bypass.run(options, place.settings, stop))


def _stopped_by_a_signal() -> asyncio.Event:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop
