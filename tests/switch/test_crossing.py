"""Foreign keys that cross services: taken off before a switch, acting through a queue, and put back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from chaos.injection import Fault, Kind
from chaos.turns import Turn
from cutover import faults
from cutover.control import crossing as records
from cutover.control import switches
from cutover.control.database import Control
from cutover.errors import NotYet, Unreachable
from cutover.flags import store as flags
from cutover.plan.load import load_text
from cutover.plan.models import Plan
from cutover.postgres import epoch, fence, foreign_keys
from cutover.postgres.catalog import ForeignKey
from cutover.postgres.databases import Database, Pair, Side, other
from cutover.postgres.identifiers import TableName
from cutover.switch import crossing
from cutover.switch.environment import SwitchEnvironment
from tests.conftest import FreshDatabase
from tests.servers import Clusters
from tests.switch.conftest import drop_streams, verify
from tests.switch.places import driver, keys, planned
from tests.switch.test_section import there_and_finished
from tests.waiting import until

DDL = """
CREATE TABLE users (id bigint PRIMARY KEY);
CREATE TABLE strategies (id bigint PRIMARY KEY);
CREATE TABLE trades (
    id bigint PRIMARY KEY,
    user_id bigint NOT NULL CONSTRAINT trades_user_id_fkey REFERENCES users ON DELETE CASCADE,
    strategy_id bigint CONSTRAINT trades_strategy_id_fkey REFERENCES strategies ON DELETE SET NULL
);
"""
PLAN = """
migration: crossing
monolith: {database: monolith}
services:
  accounts: {database: accounts_db, tables: {users: {}, strategies: {}}}
  trading:
    database: trading_db
    tables: {trades: {}}
    foreign_keys: {trades_user_id_fkey: loose, trades_strategy_id_fkey: drop}
"""
#: Those that are validated.
REAL_KEYS = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated AND conrelid = 'trades'::regclass"


class World:
    def __init__(self, plan: Plan, control: Control, databases: dict[str, Database]) -> None:
        self.plan = plan
        self.control = control
        self.databases = databases

    def database(self, name: str) -> Database:
        return self.databases[name]

    def pair(self, service: str) -> Pair:
        names = tuple(TableName.parse(t) for t in self.plan.service(service).tables)
        target = self.database(self.plan.service(service).database)
        return Pair("crossing", service, self.database("monolith"), target, names)

    def env(self, service: str) -> SwitchEnvironment:
        return SwitchEnvironment(self.plan, self.pair(service), self.control)

    async def capture(self) -> None:
        for service in self.plan.services:
            await crossing.capture(self.plan, self.pair(service), self.control)

    async def run(self, database: str, sql: str) -> list[tuple[object, ...]]:
        async with self.database(database).session() as connection:
            return [tuple(row) for row in await connection.fetch(sql)]


@pytest_asyncio.fixture
async def world(
    monolith_db: Database, service_db: Database, fresh_database: FreshDatabase, clusters: Clusters, control: Control
) -> AsyncIterator[World]:
    trading = await fresh_database(clusters.services, f"trading{uuid4().hex[:6]}")
    databases = {"monolith": monolith_db, "accounts_db": service_db, "trading_db": trading}
    made = World(load_text(PLAN), control, databases)
    for name in databases:
        async with made.database(name).session() as connection:
            await connection.execute(DDL)
    for service in made.plan.services:
        await flags.ensure(control, "crossing", service)
        async with monolith_db.session() as connection:
            await epoch.install(connection, service, "monolith")
    await made.run("monolith", "INSERT INTO users SELECT generate_series(1, 5)")
    await made.run("monolith", "INSERT INTO strategies SELECT generate_series(1, 5)")
    await made.run("monolith", "INSERT INTO trades SELECT i, i, i FROM generate_series(1, 5) i")
    yield made


async def test_a_loose_key_acts_through_its_queue_once_the_real_one_is_gone(world: World) -> None:
    await world.capture()
    assert await crossing.detach(world.env("trading")) == 2
    assert await crossing.detach(world.env("trading")) == 0
    await world.run("monolith", "DELETE FROM users WHERE id = 3")
    assert await world.run("monolith", "SELECT count(*) FROM trades") == [(5,)]
    assert await crossing.process(world.plan, "accounts", world.control, world.database) == 1
    assert await world.run("monolith", "SELECT id FROM trades ORDER BY id") == [(1,), (2,), (4,), (5,)]


async def test_children_follow_to_wherever_they_are_writable(world: World) -> None:
    await world.capture()
    await crossing.detach(world.env("accounts"))
    await flags.flip(
        world.control, "crossing", "accounts", primary_side="service", epoch=1, actor="test", pause_id=None
    )
    await world.run("accounts_db", "INSERT INTO users SELECT generate_series(1, 5)")
    await world.run("accounts_db", "DELETE FROM users WHERE id = 2")
    await crossing.process(world.plan, "accounts", world.control, world.database)
    assert await world.run("monolith", "SELECT id FROM trades ORDER BY id") == [(1,), (3,), (4,), (5,)]


async def test_keys_come_back_validated_when_both_ends_are_home_and_not_before(world: World) -> None:
    await world.capture()
    await crossing.detach(world.env("trading"))
    await flags.flip(
        world.control, "crossing", "accounts", primary_side="service", epoch=1, actor="test", pause_id=None
    )
    assert await crossing.reattach(world.env("trading"), world.database) == []
    assert all(record.detached for record in await records.every(world.control, "crossing"))
    await flags.flip(
        world.control, "crossing", "accounts", primary_side="monolith", epoch=2, actor="test", pause_id=None
    )
    await world.run("monolith", "DELETE FROM users WHERE id = 1")
    assert await crossing.reattach(world.env("trading"), world.database) == []
    assert await world.run(
        "monolith", "SELECT count(*), bool_and(convalidated) FROM pg_constraint WHERE contype = 'f'"
    ) == [(2, True)]


async def test_a_key_that_was_noted_and_not_taken_off_is_taken_off_by_the_next_attempt_and_comes_back(
    world: World,
) -> None:
    async def die(point: str) -> None:
        if point == "keys.detach.before":
            raise Unreachable(f"killed at {point}")

    await world.capture()
    with faults.armed(die), pytest.raises(Unreachable, match=r"keys\.detach\.before"):
        await crossing.detach(world.env("trading"))
    assert [record.detached for record in await records.every(world.control, "crossing")].count(True) == 1
    assert await crossing.detach(world.env("trading")) == 2
    assert await crossing.reattach(world.env("trading"), world.database) == []
    assert await world.run("monolith", "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == [(2,)]


async def test_a_key_that_cannot_be_put_back_is_reported_and_stays_away(world: World) -> None:
    await world.capture()
    await crossing.detach(world.env("trading"))
    await world.run("monolith", "DELETE FROM strategies WHERE id = 4")
    problems = await crossing.reattach(world.env("trading"), world.database)
    assert len(problems) == 1
    assert "trades_strategy_id_fkey" in problems[0]


async def test_a_key_that_only_had_to_wait_is_no_problem_to_report_and_the_next_call_puts_it_back(world: World) -> None:
    pair = world.pair("trading")
    await crossing.capture(world.plan, pair, world.control)
    await crossing.detach(world.env("trading"))

    async def away(point: str) -> None:
        if point == "keys.restore.before":
            raise Unreachable("the monolith does not answer")

    with faults.armed(away), pytest.raises(Unreachable):
        await crossing.reattach(world.env("trading"), world.database)
    assert await crossing.reattach(world.env("trading"), world.database) == []
    assert await world.run("monolith", REAL_KEYS) == [(2,)]


async def asleep(calling: Awaitable[object], at: str, meanwhile: Callable[[], Awaitable[object]]) -> None:
    """An attempt sleeps at that point; when it wakes another one has done its work, and it has no effect any more."""
    sleeps, wakes = asyncio.Event(), asyncio.Event()

    async def sleep(point: str) -> None:
        if point == at and not sleeps.is_set():
            sleeps.set()
            await wakes.wait()

    with faults.armed(sleep):
        sleeper = asyncio.ensure_future(calling)
        await asyncio.wait_for(sleeps.wait(), 20)
        await meanwhile()
        wakes.set()
        with pytest.raises((NotYet, Unreachable)):
            await sleeper


@pytest.mark.parametrize("by", ["trading", "accounts"])
async def test_an_attempt_that_slept_does_not_take_off_a_key_that_was_put_back_meanwhile(world: World, by: str) -> None:
    await world.capture()

    async def meanwhile() -> None:
        assert await crossing.reattach(world.env(by), world.database) == []

    await asleep(crossing.detach(world.env("trading")), "keys.detach.before", meanwhile)
    assert await world.run("monolith", REAL_KEYS) == [(2,)]
    assert not any(record.detached for record in await records.every(world.control, "crossing"))


@pytest.mark.parametrize("by", ["trading", "accounts"])
@pytest.mark.parametrize("at", ["keys.restore.before", "keys.validate.before", "validated.before"])
async def test_an_attempt_that_slept_neither_puts_back_a_key_nor_says_so_once_it_was_taken_off(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str, by: str
) -> None:
    validate = foreign_keys.validate

    async def then_pass(connection: asyncpg.Connection, key: ForeignKey) -> None:
        await validate(connection, key)
        async with faults.step("validated"):  # and not yet noted
            return

    monkeypatch.setattr(foreign_keys, "validate", then_pass)
    await world.capture()
    await crossing.detach(world.env("trading"))
    again = partial(crossing.detach, world.env(by))
    await asleep(crossing.reattach(world.env("trading"), world.database), at, again)
    assert await world.run("monolith", REAL_KEYS) == [(0,)]
    assert all(record.detached for record in await records.every(world.control, "crossing"))


async def test_a_key_whose_other_service_is_just_being_switched_is_left_to_that_ones_run(world: World) -> None:
    await world.capture()
    await crossing.detach(world.env("trading"))
    row = await switches.raise_token(world.control, "crossing", "accounts")
    assert row is not None
    await switches.begin(
        world.control, row, switch_id="s", to_side="monolith", from_side="service", from_epoch=0, plan_hash=""
    )
    assert await crossing.reattach(world.env("trading"), world.database) == []
    assert await world.run("monolith", REAL_KEYS) == [(0,)]


async def test_a_key_comes_back_whose_other_service_was_never_installed(world: World) -> None:
    await world.run("monolith", "DELETE FROM cutover.epoch WHERE service = 'accounts'")
    await crossing.capture(world.plan, world.pair("trading"), world.control)
    await crossing.detach(world.env("trading"))
    assert await crossing.reattach(world.env("trading"), world.database) == []
    assert await world.run("monolith", REAL_KEYS) == [(2,)]


async def test_children_without_parents_are_counted_once_nobody_checks_the_key_any_more(world: World) -> None:
    async def orphans() -> int:
        return await crossing.orphans(world.plan, "trading", "trades", world.control, world.database)

    await world.capture()
    assert await orphans() == 0
    await crossing.detach(world.env("trading"))
    await world.run("monolith", "DELETE FROM users WHERE id = 1")
    assert await orphans() == 0  # its queue was followed meanwhile
    await world.run("monolith", "INSERT INTO trades VALUES (77, 9999, NULL), (78, 9999, NULL), (79, 2, 12345)")
    assert await orphans() == 2
    assert await crossing.orphans(world.plan, "accounts", "users", world.control, world.database) == 0


#: What happens at a point of the step that takes keys away, and again of the one that puts them back; the last one is
#: the place. Behind a cut COMMIT of the first key the second one follows.
FAULTS: list[tuple[Kind, bool, str, str]] = [
    ("kill", False, "before", "restore.before"),
    ("kill", False, "after", "restore.after"),
    ("error", False, "before", "restore.before"),
    ("error", True, "after", "restore.after"),
    ("reset", False, "before", "restore.before"),
    ("reset", True, "before", "restore.before"),
    ("reset", False, "after", "validate.before"),
    ("reset", True, "after", "validate.before"),
    ("kill", False, "before", "validate.before"),
    ("kill", False, "after", "validate.after"),
    ("error", True, "before", "validate.before"),
    ("error", False, "after", "validate.after"),
]
DATABASES: dict[Side, str] = {"monolith": "monolith", "service": "trading_db"}
INSERT = "INSERT INTO trades SELECT coalesce(max(id), 0) + 1, 5, 5 FROM trades"


@pytest_asyncio.fixture
async def trading(world: World) -> AsyncIterator[SwitchEnvironment]:
    """The service with the keys streams, and its parents stay at the monolith."""
    pair = world.pair("trading")
    await world.run("trading_db", "DROP TABLE users, strategies CASCADE")
    for side in ("monolith", "service"):
        async with pair.at(side).session() as connection:
            await epoch.install(connection, pair.service, side)
            await fence.install(connection, pair.service, pair.tables, closed=side == "service")
    await world.capture()
    env = world.env("trading")
    stream = env.stream("forward")
    await stream.prepare()
    await env.changed("forward").prepare()
    await stream.start(copy=True)
    await until(stream.ready, "the first copy is done")
    async with pair.target.session() as sink:
        await fence.make_always(sink, pair.tables)
    await verify(env)
    yield env
    await drop_streams(env)


async def written_at(world: World, primary: Side) -> None:
    """That side takes a write, and the other one refuses it."""
    with pytest.raises(asyncpg.PostgresError) as refused:
        await world.run(DATABASES[other(primary)], INSERT)
    assert refused.value.sqlstate == epoch.FENCED_SQLSTATE
    await world.run(DATABASES[primary], INSERT)


async def parent_deleted(world: World, primary: Side) -> None:
    """A parent comes and goes at the monolith, and has a child where its service is writable, which is to follow."""
    parent = (await world.run("monolith", "INSERT INTO users SELECT max(id) + 1 FROM users RETURNING id"))[0][0]
    await world.run(DATABASES[primary], f"INSERT INTO trades SELECT max(id) + 1, {parent}, NULL FROM trades")
    await world.run("monolith", f"DELETE FROM users WHERE id = {parent}")


@pytest.mark.slow
async def test_a_switch_takes_off_a_key_that_another_service_has_put_back_since(
    world: World, trading: SwitchEnvironment
) -> None:
    await crossing.detach(trading)
    assert await crossing.reattach(world.env("accounts"), world.database) == []
    assert await world.run("monolith", REAL_KEYS) == [(2,)]
    await there_and_finished(trading, "service")
    assert await world.run("monolith", REAL_KEYS) == [(0,)]
    assert all(record.detached for record in await records.every(world.control, "crossing"))


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_keys_are_away_for_a_switch_and_back_after_it_whatever_ends_an_attempt(
    world: World, trading: SwitchEnvironment, control_db: Database, tmp_path: Path
) -> None:
    """The crash matrix has no such keys; its processes, faults and calls are these.

    Behind a kill there is a switch and a rollback; behind another fault the run is given up before its switch.
    """
    place = planned(world.plan, "trading", control_db, world.databases, tmp_path)
    calling = driver(place, world.control, tmp_path)
    for number, (kind, hard, at, back_at) in enumerate(FAULTS, 1):
        away = Turn("service", [calling.strike(faults=[Fault(f"keys.detach.{at}", kind, hard=hard)])])
        await calling.call(keys, away, "detach")
        away.count()
        assert (away.harm, away.calls) == (1, 2), away.strikes
        assert await world.run("monolith", REAL_KEYS) == [(0,)]
        assert all(record.detached for record in await records.every(world.control, "crossing"))

        if kind == "kill":
            await there_and_finished(trading, "service")
            await parent_deleted(world, "service")
            await there_and_finished(trading, "monolith")
        else:
            await parent_deleted(world, "monolith")

        back = Turn("monolith", [calling.strike(faults=[Fault(f"keys.{back_at}", kind, hard=hard)])])
        assert await calling.call(keys, back, "restore") == []
        back.count()
        assert (back.harm, back.calls) == (1, 2), back.strikes
        assert await world.run("monolith", REAL_KEYS) == [(2,)]
        assert not any(record.detached for record in await records.every(world.control, "crossing"))
        await written_at(world, "monolith")
        assert await world.run("monolith", "SELECT count(*) FROM trades") == [(5 + number,)], (
            "a child follows, no other"
        )

    stream = trading.stream("forward")
    await stream.await_marker(await stream.put_marker(), 20)
    every = "SELECT * FROM trades ORDER BY id"
    assert await world.run("trading_db", every) == await world.run("monolith", every)
