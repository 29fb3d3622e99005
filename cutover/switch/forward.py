"""The fenced section on its way forwards; what stops it is taken back by `recovery`."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import asyncpg

from cutover import faults
from cutover.control import rebuilds, switches
from cutover.errors import GateClosed, NotYet, Unreachable
from cutover.flags import instances
from cutover.flags import store as flags
from cutover.postgres import epoch, fence, sequences, standbys
from cutover.postgres.databases import CONNECTION_ERRORS, SIDES, Side, direction_from
from cutover.postgres.identifiers import TableName
from cutover.reconcile.changed import ChangedKeys
from cutover.reconcile.sides import at_once
from cutover.streams.base import Marker
from cutover.switch import crossing, servers
from cutover.switch.attempt import Attempt
from cutover.switch.environment import TAIL_LIMIT, SwitchEnvironment
from cutover.switch.models import StepTiming, SwitchOutcome, SwitchRequest
from cutover.switch.steps import POINT_OF_NO_RETURN, SECTION
from cutover.switch.turn import renew_slot, turn, turns_of
from cutover.telemetry.setup import tracer

#: One try at the fence's lock; longer would queue the application's writers behind it.
_LOCK_WAIT_MS = 400
#: How long transactions that stand in the way are waited out before the pause begins.
_CLEAR_SECONDS = 15.0
_OLD_TRANSACTION_SECONDS = 0.3
#: A step that keeps the limit by itself says better what it waited for.
_STEP_GRACE = 0.3
#: Steps that the pause's limit cuts short.
_LIMITED = SECTION[: SECTION.index(POINT_OF_NO_RETURN)]
#: What journal, commit and flip may need of the pause's limit.
_JOURNAL_SECONDS = 0.1
#: The application waits meanwhile.
_ROLLBACK_SECONDS = 1.0


class Forward:
    """Performs the steps of `SECTION`, with their timings."""

    def __init__(
        self,
        env: SwitchEnvironment,
        request: SwitchRequest,
        attempt: Attempt,
        changed: ChangedKeys,
        said: list[str],
    ) -> None:
        self.env = env
        self.request = request
        self.attempt = attempt
        self.said = said
        self.direction = direction_from("monolith" if request.to_side == "service" else "service")
        self.stream = env.stream(self.direction)
        self.changed = changed
        self.timings: list[StepTiming] = []
        self.acks = instances.Acks(acked=0, lapsed=0)
        self._leases = instances.Leases()
        self.compared = 0
        self._begun = 0.0
        self._fence_begun = 0.0
        self._members: dict[str, tuple[TableName, ...]] = {}
        self._marker: Marker | None = None
        self._sequences: sequences.SequencePlan | None = None
        self._unfencing: asyncpg.transaction.Transaction | None = None
        #: Once it is set, only the control database knows whether there is a way back.
        self.journal_sent = False

    async def run(self) -> SwitchOutcome:
        """All steps, or the first one's error."""
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "announce-pause": self._announce,
            "fence": self._fence,
            "marker": self._carry_marker,
            "standbys": self._standbys,
            "sequences": self._raise_sequences,
            "compare": self._compare,
            "turn": self._turn,
            "unfence": self._unfence,
            "journal": self._journal,
            "commit": self._commit,
            "flip": self._flip,
        }
        labels = {"cutover.service": self.request.service, "cutover.to_side": self.request.to_side}
        self._begun = time.monotonic()
        for name in SECTION:
            self.said[0] = name
            begun = time.monotonic()
            with tracer().start_as_current_span(f"switch {name}", attributes=labels):
                await self._perform(name, steps[name])
            self.timings.append(StepTiming(name=name, ms=round((time.monotonic() - begun) * 1000, 2)))
        ended = time.monotonic()
        outcome = SwitchOutcome(
            result="done",
            switch_id=self.request.switch_id,
            service=self.request.service,
            from_side=self.attempt.row.from_side,
            to_side=self.attempt.row.to_side,
            epoch=self.attempt.row.to_epoch,
            pause_ms=round((ended - self._begun) * 1000, 2),
            write_pause_ms=round((ended - self._fence_begun) * 1000, 2),
            acked=self.acks.acked,
            lapsed=self.acks.lapsed,
            compared_keys=self.compared,
            steps=self.timings,
        )
        async with faults.step("switch.done"):
            self.attempt.row = await switches.advance(
                self.env.control,
                self.attempt.row,
                "done",
                only_from=("journaled",),
                outcome=outcome.model_dump(mode="json"),
            )
        return outcome

    async def _perform(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        async def perform() -> None:
            async with faults.step(f"switch.{name}"):
                await step()

        await (self._limited(perform) if name in _LIMITED else perform())

    async def _limited(self, step: Callable[[], Awaitable[None]]) -> None:
        """What can be undone may take what is left of the pause: a network that says nothing must not prolong it."""
        try:
            async with asyncio.timeout(self._remaining + _STEP_GRACE):
                await step()
        except TimeoutError:
            self.attempt.cut()
            raise NotYet(
                f"{self.request.service}: step {self.said[0]!r} did not end within the pause's limit of "
                f"{self.env.max_pause:g} s"
            ) from None

    @property
    def _remaining(self) -> float:
        """Seconds of the pause's limit that are left. Raises NotYet when there are none."""
        left = self.env.max_pause - (time.monotonic() - self._begun)
        if left <= 0:
            raise NotYet(f"{self.request.service}: the pause reached its limit of {self.env.max_pause:g} s")
        return left

    async def clear_the_way(self) -> None:
        """Before the pause: connections open, statements prepared, transactions in the way waited out on both sides.

        And it is known who of the applications' instances is gone.

        Raises GateClosed where the stream is lost or a server is another one than the evidence came from: a pause
        would only be in vain. NotYet where the stream lags too far, or with the sessions that would hold a fence off.
        """
        self.said[0] = "clear-the-way"
        await servers.require_known(self.env)
        for side in SIDES:
            await self.attempt.seize(side)
        if self.request.to_side == "service":
            await crossing.take_off(self.env, self.attempt)
        # only now: whoever was about to drop a stream cannot any more
        await self._require_stream()
        await self._require_way_back()
        for side in SIDES:
            await self.attempt.rehearse(side)
            connection = await self.attempt.session(side)
            self._members[side] = await fence.relations(connection, self.env.pair.tables)
            await fence.states_of(connection, self._members[side])
        await self._require_short_lag()
        self._sequences = await sequences.plan_sequences(
            await self.attempt.session(self._from_side),
            await self.attempt.session(self.request.to_side),
            self.env.pair.tables,
            self.env.plan.switchover.sequence_margin,
        )
        deadline = time.monotonic() + _CLEAR_SECONDS
        while found := await self._in_the_way():
            if time.monotonic() > deadline:
                raise NotYet(f"{self.request.service}: in the way of the fences: " + "; ".join(found[:5]))
            await asyncio.sleep(0.1)
        await self._leases.settle(self.env.control, self.request.migration, self.request.service)
        # last of all, so that inside the fence only what changes from here on is left
        self.compared = await self.changed.shorten()
        await self.changed.require_short_tail(TAIL_LIMIT)

    async def _require_stream(self) -> None:
        health = await self.stream.health()
        half = await rebuilds.unfinished(self.env.control, self.request.migration, self.request.service, self.direction)
        torn = "" if await self.changed.whole() else "the record of its changed keys is lost"
        stay = f"{self.request.service}: {half or torn or health.detail}; writes stay at the {self._from_side}"
        if half or torn or health.lost:
            command = f"cutover doctor {self.request.migration} --service {self.request.service} --mend"
            raise GateClosed(f"{stay} (a lost stream: {command})")
        if not health.ok:  # a relay or an apply worker that was ended is soon replaced
            raise NotYet(stay)

    async def _require_short_lag(self) -> None:
        """A marker on the very sessions that carry the switch's own."""
        marker = await self.stream.put_marker_on(await self.attempt.session(self._from_side))
        sink = await self.attempt.session(self.request.to_side)
        await self.stream.await_marker_on(sink, marker, self.env.max_pause / 2)

    async def _require_way_back(self) -> None:
        """It was made and proved before; looked at once more, for since then it may have gone (invariant 5)."""
        back = direction_from(self.request.to_side)
        stream, turns = self.env.stream(back), await turns_of(self.env, back)
        health = await stream.health()
        problem = await turns.unarmed() if turns else health.detail
        whole = await self.env.changed(back).whole()
        if problem or not (whole and await stream.ready()):
            stands = whole and not turns and not health.lost and await stream.exists()
            raise (NotYet if stands else GateClosed)(  # a relay or an apply worker that was ended is soon replaced
                f"{self.request.service}: the stream of the way back is not ready"
                + (f": {problem}" if problem else "")
                + ("" if whole else ": the record of its changed keys is missing")
            )
        if turns:
            await renew_slot(self.attempt, self.request.to_side, turns)

    async def _in_the_way(self) -> list[str]:
        """Sessions that would hold off the fence at one side or its lifting at the other, in words."""
        found: list[str] = []
        for side in SIDES:
            connection = await self.attempt.session(side)
            holders = await fence.holders(connection, self._members[side], older_than=_OLD_TRANSACTION_SECONDS)
            outranked = side in self.attempt.outranks_autovacuum
            found += [f"at the {side} {holder}" for holder in holders if not (holder.yields and outranked)]
        return found

    @property
    def _from_side(self) -> Side:
        return "monolith" if self.request.to_side == "service" else "service"

    async def _announce(self) -> None:
        await flags.announce_pause(
            self.env.control,
            self.request.migration,
            self.request.service,
            self.request.switch_id,
            self.env.plan.switchover.max_write_pause,
            switch=self.attempt.row,
        )
        self.acks = await instances.await_acknowledged(
            self.env.control,
            self.request.migration,
            self.request.service,
            pause_id=self.request.switch_id,
            timeout=timedelta(seconds=self._remaining),
            leases=self._leases,
        )

    async def _fence(self) -> None:
        """The fence yields: its wait is limited, and between tries the application goes on."""
        self._fence_begun = time.monotonic()
        members = self._members[self._from_side]
        row = self.attempt.row
        service = self.request.service
        while True:
            wait_ms = int(min(_LOCK_WAIT_MS, self._remaining * 1000))
            try:
                async with faults.step("switch.fence-commit"), self.attempt.effect(self._from_side) as connection:
                    await connection.execute(fence.lock_within_sql(members, wait_ms))
                    # a partition that was made since has a table of its own: none can be made from here on
                    if more := set(await fence.relations(connection, self.env.pair.tables)) - set(members):
                        await connection.execute(fence.lock_within_sql(sorted(more), wait_ms))
                    await fence.ensure(connection, service, [*members, *sorted(more)], closed=True)
                    await epoch.set_epoch(connection, service, row.to_side, row.to_epoch)
                break
            except (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                connection = await self.attempt.session(self._from_side)
                found = await fence.holders(connection, members)
                if self._remaining < 0.2:
                    raise NotYet(
                        f"{self.request.service}: the fence's lock was not obtained: "
                        + ("; ".join(map(str, found[:5])) or "the holder is gone by now")
                    ) from None
                await asyncio.sleep(random.uniform(0.05, 0.15))
        self.attempt.row = await switches.advance(self.env.control, row, "fenced", only_from=("fencing",))

    async def _carry_marker(self) -> None:
        source = await self.attempt.session(self._from_side)
        sink = await self.attempt.session(self.request.to_side)
        await self.stream.end_in_doubt_on(source, sink)
        self._marker = await self.stream.put_marker_on(source, kind=epoch.SWITCH_MARKER)
        # the source stands still: what has to be compared is known before it has arrived
        await at_once(
            self.stream.await_marker_on(sink, self._marker, self._remaining), self.changed.consume(None, advance=False)
        )

    async def _standbys(self) -> None:
        """One side after the other: while the first is awaited, the second's standbys follow all the same."""
        named_at: dict[Side, list[str]] = {
            "monolith": self.env.plan.monolith.standbys,
            "service": self.env.service.standbys,
        }
        for side, named in named_at.items():
            await standbys.await_flushed(await self.attempt.session(side), named, self._remaining)

    async def _raise_sequences(self) -> None:
        """Under the token: an attempt that slept would give ids a second time on a side that has gone on since."""
        assert self._sequences is not None
        source = await self.attempt.session(self._from_side)
        async with self.attempt.effect(self.request.to_side) as target:
            await sequences.raise_planned(source, target, self._sequences)

    async def _compare(self) -> None:
        left = self._remaining
        verdict = await asyncio.wait_for(self.changed.verify(tidy=False, tail_taken=True), left)
        self.compared += verdict.keys
        if not verdict.equal:
            found = [f"{table}: {count}" for table, count in sorted(verdict.differing.items())]
            found += [f"{table}: no verified pass" for table in verdict.unverified]
            raise GateClosed(
                f"{self.request.service}: keys differ inside the fence ({', '.join(found)}): cutover reconcile --now"
            )
        # the way back begins where this proof ends
        await self.env.changed(direction_from(self.request.to_side)).adopt(self.attempt.row)

    async def _turn(self) -> None:
        await turn(self.attempt, self.request.to_side, self._remaining)

    async def _unfence(self) -> None:
        """Executed and left open: after the journal only its commit is left to do."""
        connection = await self.attempt.session(self.request.to_side)
        row = self.attempt.row
        transaction = connection.transaction()
        await transaction.start()
        self._unfencing = transaction
        await connection.execute("SET LOCAL lock_timeout = '1s'")
        await epoch.hold_token(connection, self.request.service, row.token)
        await fence.ensure(connection, self.request.service, self._members[self.request.to_side], closed=False)
        await epoch.set_epoch(connection, self.request.service, row.to_side, row.to_epoch)

    async def _journal(self) -> None:
        """A lost answer to this commit is read back before anything else happens."""
        assert self._marker is not None
        if self._remaining < _JOURNAL_SECONDS:  # afterwards there is no way but forwards
            raise NotYet(f"{self.request.service}: too little of the pause is left to write the journal")
        row = self.attempt.row
        self.journal_sent = True
        try:
            self.attempt.row = await switches.advance(
                self.env.control, row, "journaled", only_from=("fenced",), detail={"marker": self._marker.id}
            )
        except (*CONNECTION_ERRORS, asyncpg.PostgresError, Unreachable) as error:
            if _refused(error):
                self.journal_sent = False
                raise
            truth = await self._read_back()
            if truth.state != "journaled" or truth.token != row.token:
                raise
            self.attempt.row = truth

    async def _read_back(self) -> switches.SwitchRow:
        while True:
            try:
                return await switches.settled(self.env.control, self.request.migration, self.request.service)
            except (*CONNECTION_ERRORS, asyncpg.PostgresError, Unreachable):
                self.said[0] = "journal: the control database does not answer"
                await asyncio.sleep(0.1)

    async def _commit(self) -> None:
        assert self._unfencing is not None
        await self._unfencing.commit()
        self._unfencing = None

    async def _flip(self) -> None:
        await flags.flip(
            self.env.control,
            self.request.migration,
            self.request.service,
            primary_side=self.request.to_side,
            epoch=self.attempt.row.to_epoch,
            actor="cutover",
            pause_id=self.request.switch_id,
        )

    async def roll_back_unfence(self) -> None:
        """Gives up the uncommitted unfence, so that recovery can take its locks."""
        if self._unfencing is not None:
            transaction, self._unfencing = self._unfencing, None
            try:
                async with asyncio.timeout(_ROLLBACK_SECONDS):
                    await transaction.rollback()
            except (*CONNECTION_ERRORS, asyncpg.PostgresError):
                # the session is gone or useless; the server rolls back, and recovery opens a new one
                self.attempt.cut([self.request.to_side])


def _refused(error: BaseException) -> bool:
    """Whether the server has said that a statement, its own transaction, is without effect: no answer was lost.

    An ERROR ends the transaction, a FATAL may come behind its commit (manual, 53.8 "Error and Notice Message Fields").
    """
    return isinstance(error, asyncpg.PostgresError) and getattr(error, "severity_en", None) == "ERROR"
