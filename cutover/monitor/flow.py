"""What carries changes from the primary: its slots, the stream, the proof of the way back, and what is in doubt."""

import asyncio
import time

from cutover.control import notes, watching
from cutover.errors import GateClosed, NotYet
from cutover.monitor.findings import Finding
from cutover.monitor.place import Place
from cutover.postgres import changes, replication, sequences, two_phase
from cutover.postgres.databases import SIDES
from cutover.streams.base import Marker, StreamHealth
from cutover.streams.logical import LogicalStream

#: Seconds for which a prepared transaction of somebody else is its own process's business.
IN_DOUBT = 10.0
#: The same for a branch of ours: a janitor ends it within twelve, or thirty where one round meets many.
OURS_IN_DOUBT = 30.0
#: Seconds for which a look waits for its marker; the way back has to carry it within them.
PROOF_SECONDS = 4.0
#: Seconds after which a forward stream that has not carried a marker stands still.
CARRY_SECONDS = 30.0
#: Seconds for which a stream that has just begun, or is being started again, is looked at again.
SETTLE_SECONDS = 1.5
_AGAIN_SECONDS = 0.1
_CHANGED_KEYS = "changed keys"


async def watch_slots(at: Place) -> list[Finding]:
    """The stream's slot (`logical`), and that of the changed keys: there, whole, and still the same ones."""
    wanted: dict[str, str] = {}
    stream = at.stream
    if isinstance(stream, LogicalStream):
        work = await stream.work()
        if work is not None:
            wanted[stream.subscription] = f"subscription {work.stream}"
    if await watching.follows_changes(at.control, at.pair.migration, at.service, at.direction):
        wanted[changes.slot_name(at.service, at.direction)] = _CHANGED_KEYS
    found = []
    for name, life in wanted.items():
        if wrong := await _slot(at, name, life):
            text = f"replication slot {name!r} at {at.pair.source(at.direction).name!r} {wrong}"
            found.append(at.finding("slot", "critical", name, text, at.rebuild))
    return found


async def _slot(at: Place, name: str, life: str) -> str:
    """What is wrong with it, or "". One that was missing or made anew stays wrong until its stream is another one."""
    facts = await replication.slot_facts(at.sessions[at.primary], name)
    where = at.control, at.pair.migration, at.service, notes.of_slot(name)
    if facts is None:
        seen = await notes.note_missing(*where)
        # a record of changed keys notes first that it begins, and then makes its slot, which waits for transactions
        return "is gone, so changes pass by and nothing carries them" if seen or life != _CHANGED_KEYS else ""
    noted = await notes.note(*where, f"{life} {facts.since}", facts.decoded)
    if facts.wal_status == "lost" or facts.invalidated:
        why = f" ({facts.invalidated})" if facts.invalidated else ""
        return f"is lost{why}: changes are missing for good"
    if noted.lost is not None:
        return f"was dropped and made anew {noted.lost:.0f} s ago or earlier: changes of that time are missing"
    if facts.wal_status == "unreserved":
        return "is about to be lost: the server has more log than it may keep for it; its reader has to catch up now"
    return ""


async def watch_stream(at: Place) -> list[Finding]:
    """It exists, and does its work. What ends within a moment by itself is not told."""
    stream = at.stream
    if not await stream.exists():
        if not at.streaming:
            return []
        if at.primary == "service":
            text = "the reverse stream is missing, so there is no lossless way back"
            return [at.finding("way-back", "critical", "reverse", text, at.rebuild)]
        text = "the forward stream is missing, so the service's database falls behind"
        return [at.finding("stream", "critical", "forward", text, at.rebuild)]
    end = time.monotonic() + SETTLE_SECONDS
    while not (health := await stream.health()).ok and not health.lost and time.monotonic() < end:
        await asyncio.sleep(_AGAIN_SECONDS)
    if health.ok:
        return []
    text = f"the {at.direction} stream does not run: {health.detail}"
    return [at.finding("stream", "critical", at.direction, text, await _stream_remedy(at, health))]


async def _stream_remedy(at: Place, health: StreamHealth) -> str:
    stream, database = at.stream, at.pair.sink(at.direction).name
    if health.lost:
        return at.rebuild
    if not isinstance(stream, LogicalStream):
        if health.stopped:
            return f"{at.doctor} --mend"
        return f"start a worker, which relays (cutover worker); held keys: cutover quarantine list {at.pair.migration}"
    if not (await replication.subscription_health(at.sessions[at.shut], stream.subscription)).enabled:
        return f"at {database!r}: {replication.enable_sql(stream.subscription)}"
    return f"the log of {database!r}'s server says why its apply worker stops; mended, it goes on by itself"


async def watch_carrying(at: Place) -> list[Finding]:
    """A marker of its own, at the other side in time, or the stream carries nothing, whatever it says of itself.

    After a switch it is the way back, which is not proved then. Before, a stream may be a little behind.
    """
    if not at.streaming or not await at.stream.exists():
        return []
    noted = at.control, at.pair.migration, at.service, notes.of_marker(at.direction)
    lag = await at.stream.lag(PROOF_SECONDS)
    if lag.seconds is not None:
        await notes.forget(*noted)
        return []
    if at.primary == "service":
        text = (
            f"the way back is not proved: its stream did not carry a marker within {PROOF_SECONDS:g} s "
            f"({lag.bytes} bytes behind), and a rollback would have to wait for it"
        )
        return [at.finding("way-back", "critical", "proof", text, f"{at.doctor}; where it runs, {_held_up(at)}")]
    awaited = await notes.awaited(*noted)
    if awaited is not None and await _carried(at, awaited.what):
        await notes.forget(*noted)
        awaited = None
    if awaited is None:
        await notes.await_from_now(*noted, (await at.stream.put_marker()).id)
        return []
    if awaited.seconds <= CARRY_SECONDS or not (await at.stream.health()).ok:
        return []  # what does not run is told by `watch_stream`
    text = (
        f"the forward stream does not carry: a marker of {awaited.seconds:.0f} s ago has not arrived ({lag.bytes} "
        "bytes behind), though nothing is wrong with it"
    )
    return [at.finding("stream", "critical", "forward does not carry", text, _held_up(at))]


def _held_up(at: Place) -> str:
    return (
        f"look for a lock that its writer waits for at {at.pair.sink(at.direction).name!r} (pg_stat_activity: "
        "wait_event_type = 'Lock'), or for one very large transaction that it is at"
    )


async def _carried(at: Place, marker: str) -> bool:
    try:
        await at.stream.await_marker(Marker(marker), 0)
    except (NotYet, GateClosed):
        return False
    return True


async def watch_in_doubt(at: Place) -> list[Finding]:
    """Prepared transactions older than IN_DOUBT (ours OURS_IN_DOUBT), at each side that answers."""
    found = []
    for side in SIDES:
        if side not in at.sessions:
            continue
        for one in await two_phase.in_doubt(at.sessions[side], at.service, at.members[side], IN_DOUBT):
            if one.ours and one.age < OURS_IN_DOUBT:
                continue
            whose = "a strong write's branch" if one.ours else f"a prepared transaction of role {one.owner}"
            text = f"{whose}, {one.gid!r}, is in doubt at the {side} for {one.age:.0f} s and holds its locks"
            remedy = (
                "a worker's janitor ends it, once both databases answer: cutover worker"
                if one.ours
                else f"let its owner end it (COMMIT PREPARED or ROLLBACK PREPARED at {at.pair.at(side).name!r})"
            )
            found.append(at.finding("in-doubt", "critical", f"{one.gid} at the {side}", text, remedy))
    return found


async def watch_sequences(at: Place) -> list[Finding]:
    """At the primary: a value that a row has already is given out again, and the insert fails."""
    database = at.pair.at(at.primary).name
    return [
        at.finding(
            "sequences", "critical", str(one.sequence),
            f"sequence {one.sequence} at the {at.primary} is behind the highest {one.column} of {one.table}: the next "
            "inserts collide",
            f"at {database!r}: {one.cure}",
        )
        for one in await sequences.behind(at.sessions[at.primary], at.pair.tables)
    ]  # fmt: skip
