"""Foreign keys that cross services, around a switch (design 5.6, step 1).

While one end is at a service database and the other at the monolith, the monolith cannot check the key:
rows of the far end arrive by a stream, later. So before a service leaves, the keys that begin or end at
it are taken off the monolith, their definitions kept; `loose` ones act through a queue instead, from
before the real key goes. When both ends are home again they are put back and validated.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import asyncpg

from cutover import faults
from cutover.control import crossing as records
from cutover.control import switches
from cutover.control.database import Control
from cutover.errors import CutoverError, NotYet, Refused, Unreachable
from cutover.flags import store as flags
from cutover.pairs import pair
from cutover.plan.models import Plan
from cutover.postgres import epoch, foreign_keys, loose_keys
from cutover.postgres.databases import Database, Pair
from cutover.postgres.epoch import FENCED_SQLSTATE
from cutover.postgres.identifiers import TableName
from cutover.switch.attempt import Attempt, between_switches
from cutover.switch.environment import SwitchEnvironment

Databases = Callable[[str], Database]

#: Looks at a queue that clients still fill, before its trigger goes.
_ROUNDS = 20


def _owners(plan: Plan) -> dict[TableName, str]:
    return {TableName.parse(name): service for service in plan.services for name in plan.services[service].tables}


async def capture(plan: Plan, service: Pair, control: Control) -> list[str]:
    """Notes the keys that cross at this service, and lets the loose ones' parents queue their deletes.

    For Preparation: on the monolith for every parent, in the service's database for parents of its own.
    Returns the names of the loose keys. Raises ConfigError for a key that cannot be loose.
    """
    owners = _owners(plan)
    async with service.monolith.session("cutover-crossing") as monolith:
        for found in await foreign_keys.crossing(monolith, service.tables):
            holder, parent = owners.get(found.key.table), owners.get(found.key.references)
            if holder is None or parent is None:
                continue  # a table outside the plan; preflight has said so
            rule = plan.foreign_key_rule(found.key.name, holder, parent)
            await records.note(control, plan.migration, found.key, rule, holder=holder, parent=parent)
        mine = [
            record
            for record in await records.every(control, plan.migration)
            if record.rule == "loose" and record.parent == service.service
        ]
        for record in mine:
            await loose_keys.install_loose_key(monolith, record.key)
    async with service.target.session("cutover-crossing") as target:
        for record in mine:
            await loose_keys.install_loose_key(target, record.key)
    return [record.key.name for record in mine]


async def detach(env: SwitchEnvironment) -> int:
    """Takes every key that begins or ends at this service off the monolith; how many were there.

    Raises NotYet where somebody's lock is in the way or another attempt took over, Refused where a switch has begun.
    """
    async with between_switches(env, "monolith", ("monolith",)) as attempt:
        return await take_off(env, attempt)


async def take_off(env: SwitchEnvironment, attempt: Attempt) -> int:
    """The same under the token of an attempt that has seized the monolith: a switch makes sure of it once more.

    Another service that came home meanwhile may have put a key back.
    """
    count = 0
    monolith = await attempt.session("monolith")
    for record in await records.every(env.control, env.plan.migration):
        if env.pair.service not in record.ends:
            continue
        # the note comes first: a key that is gone without one would never come back
        if not record.detached:
            await records.set_detached(env.control, env.plan.migration, record.key, True, [attempt.row])
        async with faults.step("keys.detach"):
            count += await foreign_keys.drop(monolith, record.key, attempt.hold_token)
    return count


async def reattach(env: SwitchEnvironment, database: Databases) -> list[str]:
    """Puts back the keys of this service whose both ends are writable at the monolith; problems in words.

    A key whose other end is just being switched is left to that switch's own run. Raises NotYet where somebody's lock
    is in the way or another attempt took over, Unreachable: called again, it goes on with the keys still away.
    """
    problems: list[str] = []
    for record in await records.every(env.control, env.plan.migration):
        if not record.detached or env.pair.service not in record.ends or not await _home(env, record):
            continue
        try:
            await _put_back(env, record, database)
        except (NotYet, Unreachable):
            raise  # it passes by itself, and nobody would put the key back later
        except CutoverError as error:
            problems.append(str(error))
    return problems


async def _home(env: SwitchEnvironment, record: records.CrossingRecord) -> bool:
    """Whether both ends are writable at the monolith, and no switch of the other service is under way."""
    routes = await flags.all(env.control, env.plan.migration)
    if any(routes[end].primary_side != "monolith" for end in record.ends):
        return False
    others = [end for end in record.ends if end != env.pair.service]
    return not any([await switches.under_way(env.control, env.plan.migration, end) for end in others])


async def _put_back(env: SwitchEnvironment, record: records.CrossingRecord, database: Databases) -> None:
    """Under the tokens of both ends: no attempt of either that took keys off and slept acts later on this one.

    What the key's queues still hold is done before the rows are validated, or they would be children without parents.
    """
    async with env.pair.monolith.session("cutover-crossing") as monolith, AsyncExitStack() as held:
        attempts: list[Attempt] = []
        for end in sorted(set(record.ends)):
            if end != env.pair.service and await epoch.read(monolith, end) is None:
                continue  # its token has no place there yet, so it has no attempts either
            at = replace(env, pair=pair(env.plan, end, database))
            try:
                attempts.append(await held.enter_async_context(between_switches(at, "monolith", ("monolith",))))
            except Refused as error:
                raise NotYet(f"foreign key {record.key.name!r} is still away: {error}") from None

        async def guard(connection: asyncpg.Connection) -> None:
            for attempt in attempts:
                await attempt.hold_token(connection)

        loose = record.rule == "loose"
        if loose:
            await _process(env.plan, record, env.control, database)
        async with faults.step("keys.restore"):
            await foreign_keys.restore(monolith, record.key, guard)
        if loose:  # once more: from here on deletes do by themselves what the key says
            await _process(env.plan, record, env.control, database)
        async with faults.step("keys.validate"):
            await foreign_keys.validate(monolith, record.key)
            rows = [attempt.row for attempt in attempts]
            await records.set_detached(env.control, env.plan.migration, record.key, False, rows)


async def process(plan: Plan, service: str, control: Control, database: Databases) -> int:
    """Lets the children follow the deleted rows of this service's tables; how many parents were done."""
    done = 0
    for record in await records.every(control, plan.migration):
        if record.rule == "loose" and record.parent == service:
            done += await _process(plan, record, control, database)
    return done


async def _process(plan: Plan, record: records.CrossingRecord, control: Control, database: Databases) -> int:
    """Deletes are queued in the database where the parent was writable, so after a switch both may hold some."""
    parents, children = pair(plan, record.parent, database), pair(plan, record.holder, database)
    routes = await flags.all(control, plan.migration)
    child, living = (
        children.at(routes[record.holder].primary_side),
        parents.at(routes[record.parent].primary_side),
    )
    done = 0
    for parent in (parents.monolith, parents.target):
        try:
            while count := await loose_keys.process_loose_keys(parent, child, record.key, parent_db=living):
                done += count
        except asyncpg.PostgresError as error:
            if error.sqlstate != FENCED_SQLSTATE:
                raise
            # a switch is under way; the queue keeps its entries for the next time
    return done


async def orphans(plan: Plan, service: str, table: str, control: Control, database: Databases) -> int:
    """Rows of a table, where it is writable now, whose loose keys refer to a parent that is nowhere.

    Only keys count that no database checks any more. What is found is looked at once more after the queues were
    followed, for a deleted parent's children follow a little later.
    """
    chosen = TableName.parse(table)
    loose = [
        record
        for record in await records.every(control, plan.migration)
        if record.rule == "loose" and record.detached and record.holder == service and record.key.table == chosen
    ]
    found = 0
    for record in loose:
        if await _orphans(plan, record, control, database):
            await _process(plan, record, control, database)
            found += await _orphans(plan, record, control, database)
    return found


async def _orphans(plan: Plan, record: records.CrossingRecord, control: Control, database: Databases) -> int:
    routes = await flags.all(control, plan.migration)
    child = pair(plan, record.holder, database).at(routes[record.holder].primary_side)
    parent = pair(plan, record.parent, database).at(routes[record.parent].primary_side)
    async with child.session("cutover-crossing") as at_child, parent.session("cutover-crossing") as at_parent:
        return await loose_keys.orphans(at_child, at_parent, record.key)


@dataclass(frozen=True)
class Definition:
    """A key that crossed services, in words: what nobody keeps any more once the migration is over."""

    name: str
    words: str


async def definitions(control: Control, migration: str) -> list[Definition]:
    """The keys that crossed services as the monolith had them, for the record of the migration."""
    rules = {"loose": "acted through a queue until cleanup", "drop": "gone since the first switch of one of its ends"}
    return [
        Definition(
            record.key.name,
            f"{record.key.table} ({record.holder}) → {record.key.references} ({record.parent}): "
            f"{record.key.definition}; {rules[record.rule]}",
        )
        for record in await records.every(control, migration)
    ]


async def end(plan: Plan, service: str, control: Control, database: Databases) -> int:
    """The loose keys of this service's tables stop acting (cleanup); how many deleted parents were still followed.

    Queue, triggers off, queue once more: with the triggers' lock every delete that they saw has committed. Keys
    through which deletes arrive here go first, or what they bring would be queued for nobody. Idempotent.
    Raises NotYet while a queue does not empty.
    """
    loose = [record for record in await records.every(control, plan.migration) if record.rule == "loose"]
    return await _end(plan, service, control, database, loose, set())


async def _end(
    plan: Plan, service: str, control: Control, database: Databases, loose: list[records.CrossingRecord], seen: set[str]
) -> int:
    if service in seen:
        return 0  # a ring of services: begun further up
    seen.add(service)
    done = 0
    for record in loose:
        if record.holder == service:
            done += await _end(plan, record.parent, control, database, loose, seen)
    parents = pair(plan, service, database)
    for record in loose:
        if record.parent != service:
            continue
        done += await _emptied(plan, record, control, database, parents)
        for side in (parents.monolith, parents.target):
            async with side.session("cutover-crossing") as connection:
                await loose_keys.remove_loose_key(connection, record.key)
        done += await _emptied(plan, record, control, database, parents)
    return done


async def _emptied(
    plan: Plan, record: records.CrossingRecord, control: Control, database: Databases, parents: Pair
) -> int:
    """Follows what both queues hold of a key until nothing is left; where nothing is queued no table is looked at."""
    done = 0
    for _ in range(_ROUNDS):
        waiting = 0
        for side in (parents.monolith, parents.target):
            async with side.session("cutover-crossing") as connection:
                waiting += await loose_keys.pending(connection, record.key)
        if not waiting:
            return done
        done += await _process(plan, record, control, database)
    raise NotYet(f"{record.key.name}: deleted rows of {record.key.references} are still to be followed; their queue "
                 "does not empty")  # fmt: skip
