"""A whole migration of the example under live traffic, from an empty machine to a report.

    python -m examples.ai_trader.demo [--rows 1000000] [--rate 310] [--clients 4] [--kills] [--seed N]

Exit status 0: everything held. 1: something did not, and the report says what. 2: it could not begin.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from cutover.control.database import Control
from cutover.errors import CutoverError
from cutover.plan.models import Plan
from examples.ai_trader import demo_report, demo_screen
from examples.ai_trader.demo_fleet import Fleet, end_leftovers
from examples.ai_trader.demo_ground import (
    DEMO_PORTS,
    PLAN,
    Ground,
    connected,
    fill_monolith,
    register_plan,
    say_to_stdout,
    start_migration,
    step,
)
from examples.ai_trader.demo_kills import Killer, draw
from examples.ai_trader.demo_person import GaveUp, Mind, Person
from examples.ai_trader.demo_verdict import Course, Findings, collect
from examples.ai_trader.demo_watch import Scene, Watch

LIMIT = 360.0
LIMIT_WITH_KILLS = 540.0
ROLLED_BACK = "trading_engine"
SCREEN_EVERY = 0.5
LINE_EVERY = 5.0
WORKERS = (1, 2)
#: Columns of a report that is read from a file.
PAGE_WIDTH = 140


@dataclass(frozen=True)
class Options:
    """What one demo is asked for; `rate` is rows written a second by all clients together."""

    rows: int = 1_000_000
    rate: float = 310.0
    clients: int = 4
    kills: bool = False
    seed: int = 1
    screen: bool = True
    json: Path | None = None
    keep: bool = False
    down: bool = False
    home: Path = Path(".cutover/demo")
    port_base: int = DEMO_PORTS
    plan: Path = PLAN
    #: Seconds from the migration's start to its end; 0 for the demo's own limits.
    time_limit: float = 0.0

    @property
    def limit(self) -> float:
        return self.time_limit or (LIMIT_WITH_KILLS if self.kills else LIMIT)


#: Something that runs beside the migration.
Beside = Callable[[Client, Watch], Awaitable[None]]


class Demo:
    """One run. `run` leaves the stack up and nothing else, however it ends."""

    def __init__(self, options: Options, ground: Ground, say: Callable[[str], None] = say_to_stdout) -> None:
        self.options = options
        self.say = say
        self.ground = ground
        self.fleet = Fleet(self.ground.folder, self.ground.environ)
        #: What is held until `release`: the lock on the home.
        self._held = ExitStack()

    def prepare(self) -> None:
        """The stack, empty. Raises ConfigError (a port in use, no Temporal), Conflict while another demo runs there."""
        self._held.enter_context(self.ground.alone())
        stack = self.ground.stack(lambda text: self.say(f"  {text}"))
        if count := end_leftovers(self.ground.folder):
            self.say(f"· ended {count} processes that an earlier demo had left behind")
        with step(self.say, "deleting what an earlier demo has left"):
            stack.reset()
            shutil.rmtree(self.ground.folder, ignore_errors=True)
            self.ground.folder.mkdir(parents=True)
        with step(self.say, "starting Temporal and two PostgreSQL servers"):
            stack.up()

    def release(self) -> None:
        """Another demo may begin here."""
        self._held.close()

    async def run(self, also: Beside | None = None) -> Findings:
        """From the empty stack to the findings. Raises CutoverError where it could not begin."""
        options, settings = self.options, self.ground.settings
        try:
            with step(self.say, f"filling the monolith with {options.rows} rows"):
                await fill_monolith(settings, options.rows, options.seed, self.say)
            with step(self.say, "control schema and plan"):
                plan = await register_plan(settings, options.plan.read_text(), "demo")
            await self._begin_traffic()
            async with connected(settings) as (client, control):
                return await self._migrate(client, control, plan, also)
        finally:
            living = [name for name, child in self.fleet.children.items() if child.alive]
            if not options.keep:
                await self.fleet.stop(*living)

    async def _begin_traffic(self) -> None:
        options = self.options
        text = f"starting {len(WORKERS)} workers, {options.clients} traffic processes and psql writers"
        with step(self.say, f"{text}, until each has written"):
            for number in WORKERS:
                self.fleet.start_worker(number)
            for number in range(options.clients):
                self.fleet.start_traffic(number, options.rate / options.clients)
            self.fleet.start_psql()
            await self.fleet.writing()
        self.say(f"  logs: {self.ground.folder}")

    async def _migrate(self, client: Client, control: Control, plan: Plan, also: Beside | None) -> Findings:
        watch = Watch(
            client,
            control,
            plan.migration,
            list(plan.services),
            traffic_logs=self.fleet.traffic_logs,
            psql_logs=self.fleet.psql_logs,
        )
        await watch.look()
        before = dict(watch.scene.traffic) if watch.scene else {}
        handle = await start_migration(client, plan.migration)
        watch.begun = time.monotonic()
        watch.phases = {"preparation": 0.0}
        self.say(f"· the migration has begun: {self.ground.web_page}/{handle.id}")
        rolled_back = ROLLED_BACK if ROLLED_BACK in plan.services else ""

        def look() -> tuple[Any, Any, float] | None:
            scene = watch.scene
            return (scene.overview.runs, scene.stages, scene.at) if scene else None

        mind = Mind(plan.migration, rollback_of=rolled_back)
        person = Person(client, mind, look, lambda: watch.seconds, self.ground.folder / "decisions.jsonl")
        rng = random.Random(self.options.seed)
        moments = draw(rng, list(plan.services), rolled_back) if self.options.kills else []
        killer = Killer(self.fleet, watch, client, control, rng, moments)
        background: list[Awaitable[None]] = [watch.run(), person.run(), self._show(watch, person, killer)]
        if moments:
            background.append(killer.run())
        if also is not None:
            background.append(also(client, watch))
        trouble = await self._until_done(handle, background)
        seconds = watch.seconds
        scene = await watch.look()
        rate = (scene.traffic.get("ok", 0) - before.get("ok", 0)) / max(seconds, 1e-9)
        if trouble:
            trouble = "\n".join([trouble, *_where(scene)])
        with step(self.say, "stopping the clients"):
            await self.fleet.stop(*self.fleet.traffic, *(["psql"] if "psql" in self.fleet.children else []))
        course = Course(
            seconds=round(seconds, 1),
            limit=self.options.limit,
            phases=watch.durations(),
            stages=watch.events,
            writes_per_second=round(rate, 1),
            rate=self.options.rate,
            rows=self.options.rows,
            rolled_back=rolled_back,
            kills=killer.killed,
            kills_wanted=self.options.kills,
            gave_up=trouble,
        )
        with step(self.say, "checking every acknowledged write against the final databases"):
            return await collect(
                self.ground.settings, control, plan, self.fleet, course, scene.stages, self.ground.web_page
            )

    async def _until_done(self, handle: WorkflowHandle[Any, Any], background: list[Awaitable[None]]) -> str:
        """Until the migration is complete ("") or cannot go on: why not, in words."""
        tasks = [asyncio.ensure_future(one) for one in background]
        result: asyncio.Future[Any] = asyncio.ensure_future(handle.result())
        failing = asyncio.ensure_future(self._failing())
        try:
            deadline = time.monotonic() + self.options.limit
            pending: set[asyncio.Future[Any]] = {result, failing, *tasks}
            while result in pending:
                done, pending = await asyncio.wait(
                    pending, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    return f"the migration was not complete after {self.options.limit:.0f} s"
                if failing in done:
                    return failing.result()
                for task in done - {result}:
                    task.result()  # one that has done all it had to, as the killer, ends in peace
            result.result()
            return ""
        except WorkflowFailureError as error:
            return f"the migration failed: {error.cause}"
        except GaveUp as error:
            return str(error)
        except BaseExceptionGroup as group:
            return f"the demo itself failed: {group.exceptions[0]}"
        finally:
            for future in (result, failing, *tasks):
                future.cancel()
            await asyncio.gather(result, failing, *tasks, return_exceptions=True)

    async def _failing(self) -> str:
        """Until a process that we did not end has ended: what it said."""
        while True:
            if failed := self.fleet.failed():
                return "\n".join(failed)
            await asyncio.sleep(0.5)

    async def _show(self, watch: Watch, person: Person, killer: Killer) -> None:
        """The live screen, or a line now and then where the output is no terminal."""
        if not self.options.screen:
            shown = 0
            while True:
                await asyncio.sleep(LINE_EVERY)
                news = [(one.at, str(one)) for one in person.decided] + [(one.at, str(one)) for one in killer.killed]
                for _, text in sorted(news)[shown:]:
                    self.say(f"  {text}")
                shown = len(news)
                if watch.scene is not None:
                    self.say(demo_screen.line(watch.scene, watch.services))
        with Live(auto_refresh=False, transient=True, vertical_overflow="crop") as live:
            while True:
                await asyncio.sleep(SCREEN_EVERY)
                if watch.scene is not None:
                    shown_now = demo_screen.render(watch.scene, watch.services, person.decided, killer.killed)
                    live.update(shown_now, refresh=True)


def _where(scene: Scene) -> list[str]:
    """What every open run waits for, for a report of failure."""
    return [f"    {run.workflow_id}: {run.state}: waits for {run.waiting_for}" for run in scene.overview.runs] + [
        f"    {name}: does not answer" for name in scene.overview.silent
    ]


def perform(options: Options) -> int:
    """The whole demo with its report; the exit status."""
    console = Console() if sys.stdout.isatty() else Console(width=PAGE_WIDTH)
    demo = Demo(options, Ground.at(options.home, options.port_base))
    try:
        begun = time.monotonic()
        demo.prepare()
        found = asyncio.run(demo.run())
        demo_report.write(found, console)
        if options.json is not None:
            options.json.write_text(json.dumps(found.as_json(), indent=2, default=str) + "\n")
        console.print(f"all of it took {time.monotonic() - begun:.0f} s")
    except KeyboardInterrupt:
        demo.fleet.stop_now()
        console.print("\nstopped: clients and workers have ended, the migration waits where it was.")
        _go_on(demo, console)
        return 130
    except CutoverError as error:
        demo.fleet.stop_now()
        console.print(f"demo: {error}", style="red", markup=False)
        return 2
    finally:
        demo.release()
    if options.down:
        demo.ground.stack(demo.say).down()
    else:
        _go_on(demo, console)
    return 1 if found.problems else 0


def _go_on(demo: Demo, console: Console) -> None:
    environ = demo.ground.environ
    prefix = " ".join(f"{n}={environ[n]}" for n in ("CUTOVER_DEV_HOME", "CUTOVER_DEV_PORT_BASE", "CUTOVER_ENV_FILE"))
    console.print(
        f"The stack is still up. In its surroundings (export {prefix}):\n"
        "  cutover worker          a worker, which the web page needs to show what runs say, and runs to go on\n"
        "  cutover status ai-trader\n"
        "  cutover dev down        stop the stack; the next demo starts from empty by itself",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.ai_trader.demo", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in the monolith, over nine tables")
    parser.add_argument("--rate", type=float, default=310.0, help="rows written a second, by all clients together")
    parser.add_argument("--clients", type=int, default=4, help="traffic processes")
    parser.add_argument("--kills", action="store_true", help="kill -9 workers at ten moments, and one client")
    parser.add_argument("--seed", type=int, default=1, help="of the rows and of the kills")
    parser.add_argument("--no-screen", dest="screen", action="store_false", help="a line now and then instead")
    parser.add_argument("--json", type=Path, help="write the report to this file as well")
    parser.add_argument("--keep", action="store_true", help="leave the workers running at the end")
    parser.add_argument("--down", action="store_true", help="stop the stack at the end")
    parser.add_argument("--home", type=Path, default=Options.home, help="folder of the demo's own stack")
    parser.add_argument("--port-base", type=int, default=DEMO_PORTS, help="four ports from here on")
    parser.add_argument("--time-limit", type=float, default=0.0, help="seconds for the migration; 0: 360")
    parser.add_argument("--plan", type=Path, default=PLAN, help="another plan of the same tables")
    options = Options(**vars(parser.parse_args()))
    if not sys.stdout.isatty():
        options = Options(**{**vars(options), "screen": False})
    return perform(options)


if __name__ == "__main__":
    sys.exit(main())
