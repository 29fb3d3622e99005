"""The permanent monitor: one look at one service, cheap enough for every few seconds, from preparation to cleanup.

A look counts only where no switch came in between: what a switch does on its way is not called wrong. Every watch has a
time limit, and what cannot be read is a finding too (invariant 6). It changes nothing but a marker of the stream and
its notes in the control database; with `mend`, a fence that never was is made, as `monitor.fences` does.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import asyncpg

from cutover.control import fingerprints, switches
from cutover.control.database import Control
from cutover.control.switches import Still
from cutover.errors import ConfigError, CutoverError
from cutover.monitor import flow, sides, writers
from cutover.monitor.catalogs import TAKEN_OVER
from cutover.monitor.findings import Finding, by_importance
from cutover.monitor.place import Place
from cutover.plan.models import Plan
from cutover.postgres import fence
from cutover.postgres.databases import FAILURES, SIDES, Pair, Side

#: Seconds that one watch, or the opening of a session, may take. With PROOF_SECONDS beside it a look ends within ten
#: seconds of its beginning whatever hangs.
LIMIT = 2.5
LABEL = "cutover-watch"


@dataclass(frozen=True)
class Looked:
    """One look. `settled` False: a switch is under way (or the service has no route yet), and little was judged."""

    service: str
    findings: list[Finding] = field(default_factory=list)
    settled: bool = False
    primary: Side | None = None
    epoch: int = 0
    stage: str = ""
    seconds: float = 0.0

    @property
    def state(self) -> str:
        """In a few words, where nothing is wrong."""
        if self.primary is None:
            return "not prepared yet"
        if self.stage in TAKEN_OVER:
            return f"{self.stage}: nothing is left to watch"
        return f"writable at the {self.primary}, epoch {self.epoch}" if self.settled else "a switch is under way"


@dataclass(frozen=True)
class _Watch:
    name: str
    look: Callable[[Place], Awaitable[list[Finding]]]
    #: The sides that it has to read; of the others it makes do with what is there.
    both: bool = False
    primary: bool = False
    shut: bool = False
    #: Also while a switch is under way.
    always: bool = False
    limit: float = LIMIT


_WATCHES = (
    _Watch("switch", sides.watch_switch, always=True),
    _Watch("writable side", sides.watch_sides, both=True),
    _Watch("writers", writers.watch_writers, shut=True),
    _Watch("slots", flow.watch_slots, both=True),
    _Watch("stream", flow.watch_stream, both=True, limit=LIMIT + flow.SETTLE_SECONDS),
    _Watch("transactions in doubt", flow.watch_in_doubt, always=True),
    _Watch("sequences", flow.watch_sequences, primary=True),
)
#: Beside the others, as it waits for its marker.
_PROOF = _Watch("stream's marker", flow.watch_carrying, both=True, limit=flow.PROOF_SECONDS + LIMIT)


async def look(control: Control, plan: Plan, pair: Pair, *, mend: bool = False) -> Looked:
    """All watches over one service. Never raises for a database that does not answer: that is found."""
    begun = time.monotonic()
    found = await _look(control, plan, pair, mend)
    return replace(found, findings=by_importance(found.findings), seconds=time.monotonic() - begun)


async def _look(control: Control, plan: Plan, pair: Pair, mend: bool) -> Looked:
    unread = _Unread(pair)
    now = await _still(control, pair, unread)
    if now is None or now.stage in TAKEN_OVER:
        stage = now.stage if now else ""
        return Looked(pair.service, unread.findings, now is not None, now.primary_side if now else None, stage=stage)
    if not now.stage and not await _prepared(control, pair, unread):
        return Looked(pair.service, unread.findings)
    async with _opened(control, plan, pair, now, mend, unread) as place:
        proof = asyncio.create_task(_run(_PROOF, place, unread)) if now.settled else None
        try:
            judged: list[Finding] = []
            lasting: list[Finding] = []
            for watch in _WATCHES:
                if watch.always or now.settled:
                    (lasting if watch.always else judged).extend(await _run(watch, place, unread))
            if proof is not None:
                judged += await proof
        finally:
            if proof is not None:
                proof.cancel()
                await asyncio.gather(proof, return_exceptions=True)
    settled = now.settled and await _still(control, pair, unread) == now
    findings = [*unread.findings, *lasting, *(judged if settled else [])]
    return Looked(pair.service, findings, settled, now.primary_side, now.epoch, now.stage)


class _Unread:
    """What could not be read in this look, each thing once; a side that hung is not asked again."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.texts: dict[str, str] = {}
        self.sides: set[Side] = set()

    @property
    def findings(self) -> list[Finding]:
        remedy = f"bring it back, then: cutover doctor {self.pair.migration} --service {self.pair.service}"
        return [
            Finding("unreadable", "critical", self.pair.service, subject, text, remedy)
            for subject, text in self.texts.items()
        ]

    def add(self, what: str, error: BaseException) -> None:
        """In words without a value: a driver's text may hold one."""
        if isinstance(error, ConfigError | CutoverError):
            self.texts[str(error)[:100]] = f"it cannot be looked at: {error}"
        elif isinstance(error, TimeoutError):
            self.texts[what] = f"{what} could not be looked at in time"
        else:
            self.texts[what] = f"{what} could not be looked at ({type(error).__name__})"


async def _still(control: Control, pair: Pair, unread: _Unread) -> Still | None:
    try:
        async with asyncio.timeout(LIMIT):
            return await switches.still(control, pair.migration, pair.service)
    except FAILURES as error:
        unread.add("the control database", error)
        return None


async def _prepared(control: Control, pair: Pair, unread: _Unread) -> bool:
    """Whether Preparation is done with this service: its catalogs are taken last, once its fences stand."""
    try:
        async with asyncio.timeout(LIMIT):
            return await fingerprints.find(control, pair.migration, pair.service) is not None
    except FAILURES as error:
        unread.add("the control database", error)
        return False


@asynccontextmanager
async def _opened(
    control: Control, plan: Plan, pair: Pair, now: Still, mend: bool, unread: _Unread
) -> AsyncIterator[Place]:
    """A session at each side that answers."""
    async with AsyncExitStack() as stack:
        sessions: dict[Side, asyncpg.Connection] = {}
        members = {}

        async def reach(side: Side) -> None:
            name = f"database {pair.at(side).name!r}"
            try:
                async with asyncio.timeout(LIMIT):
                    connection = await stack.enter_async_context(pair.at(side).session(LABEL))
                    members[side] = await fence.relations(connection, pair.tables)
                    sessions[side] = connection
            except FAILURES as error:
                unread.sides.add(side)
                unread.add(name, error)

        await asyncio.gather(*map(reach, SIDES))
        try:
            yield Place(control, plan, pair, now, sessions, members, mend)
        finally:
            for side in unread.sides & set(sessions):
                sessions[side].terminate()  # its end would be waited for in vain


async def _run(watch: _Watch, place: Place, unread: _Unread) -> list[Finding]:
    """What the watch finds; where it cannot look, that is kept in `unread`."""
    needed = {
        side for side in SIDES
        if watch.both or (watch.primary and side == place.primary) or (watch.shut and side == place.shut)
    }  # fmt: skip
    if needed & unread.sides or needed - set(place.sessions):
        return []
    try:
        async with asyncio.timeout(watch.limit):
            return await watch.look(place)
    except FAILURES as error:
        if isinstance(error, TimeoutError):
            unread.sides |= set(SIDES)
        unread.add(f"the {watch.name}", error)
        return []
