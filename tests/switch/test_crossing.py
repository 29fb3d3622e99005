"""Foreign keys that cross services: taken off before a switch, acting through a queue, and put back."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from cutover import faults
from cutover.control import crossing as records
from cutover.control.database import Control
from cutover.errors import Unreachable
from cutover.flags import store as flags
from cutover.plan.load import load_text
from cutover.plan.models import Plan
from cutover.postgres.databases import Database, Pair
from cutover.postgres.identifiers import TableName
from cutover.switch import crossing
from tests.conftest import FreshDatabase
from tests.servers import Clusters

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
    await made.run("monolith", "INSERT INTO users SELECT generate_series(1, 5)")
    await made.run("monolith", "INSERT INTO strategies SELECT generate_series(1, 5)")
    await made.run("monolith", "INSERT INTO trades SELECT i, i, i FROM generate_series(1, 5) i")
    yield made


async def test_a_loose_key_acts_through_its_queue_once_the_real_one_is_gone(world: World) -> None:
    for service in world.plan.services:
        await crossing.capture(world.plan, world.pair(service), world.control)
    assert await crossing.detach(world.plan, world.pair("trading"), world.control) == 2
    assert await crossing.detach(world.plan, world.pair("trading"), world.control) == 0
    await world.run("monolith", "DELETE FROM users WHERE id = 3")
    assert await world.run("monolith", "SELECT count(*) FROM trades") == [(5,)]
    assert await crossing.process(world.plan, "accounts", world.control, world.database) == 1
    assert await world.run("monolith", "SELECT id FROM trades ORDER BY id") == [(1,), (2,), (4,), (5,)]


async def test_children_follow_to_wherever_they_are_writable(world: World) -> None:
    for service in world.plan.services:
        await crossing.capture(world.plan, world.pair(service), world.control)
    await crossing.detach(world.plan, world.pair("accounts"), world.control)
    await flags.flip(
        world.control, "crossing", "accounts", primary_side="service", epoch=1, actor="test", pause_id=None
    )
    await world.run("accounts_db", "INSERT INTO users SELECT generate_series(1, 5)")
    await world.run("accounts_db", "DELETE FROM users WHERE id = 2")
    await crossing.process(world.plan, "accounts", world.control, world.database)
    assert await world.run("monolith", "SELECT id FROM trades ORDER BY id") == [(1,), (3,), (4,), (5,)]


async def test_keys_come_back_validated_when_both_ends_are_home_and_not_before(world: World) -> None:
    for service in world.plan.services:
        await crossing.capture(world.plan, world.pair(service), world.control)
    await crossing.detach(world.plan, world.pair("trading"), world.control)
    await flags.flip(
        world.control, "crossing", "accounts", primary_side="service", epoch=1, actor="test", pause_id=None
    )
    assert await crossing.reattach(world.plan, world.pair("trading"), world.control, world.database) == []
    assert all(record.detached for record in await records.every(world.control, "crossing"))
    await flags.flip(
        world.control, "crossing", "accounts", primary_side="monolith", epoch=2, actor="test", pause_id=None
    )
    await world.run("monolith", "DELETE FROM users WHERE id = 1")
    assert await crossing.reattach(world.plan, world.pair("trading"), world.control, world.database) == []
    assert await world.run(
        "monolith", "SELECT count(*), bool_and(convalidated) FROM pg_constraint WHERE contype = 'f'"
    ) == [(2, True)]


async def test_a_key_that_was_noted_and_not_taken_off_is_taken_off_by_the_next_attempt_and_comes_back(
    world: World,
) -> None:
    async def die(point: str) -> None:
        raise Unreachable(f"killed at {point}")

    for service in world.plan.services:
        await crossing.capture(world.plan, world.pair(service), world.control)
    with faults.armed(die), pytest.raises(Unreachable, match=r"keys\.detach\.before"):
        await crossing.detach(world.plan, world.pair("trading"), world.control)
    assert [record.detached for record in await records.every(world.control, "crossing")].count(True) == 1
    assert await crossing.detach(world.plan, world.pair("trading"), world.control) == 2
    assert await crossing.reattach(world.plan, world.pair("trading"), world.control, world.database) == []
    assert await world.run("monolith", "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == [(2,)]


async def test_a_key_that_cannot_be_put_back_is_reported_and_stays_away(world: World) -> None:
    for service in world.plan.services:
        await crossing.capture(world.plan, world.pair(service), world.control)
    await crossing.detach(world.plan, world.pair("trading"), world.control)
    await world.run("monolith", "DELETE FROM strategies WHERE id = 4")
    problems = await crossing.reattach(world.plan, world.pair("trading"), world.control, world.database)
    assert len(problems) == 1
    assert "trades_strategy_id_fkey" in problems[0]


async def test_a_key_that_only_had_to_wait_is_no_problem_to_report_and_the_next_call_puts_it_back(world: World) -> None:
    pair = world.pair("trading")
    await crossing.capture(world.plan, pair, world.control)
    await crossing.detach(world.plan, pair, world.control)

    async def away(point: str) -> None:
        if point == "keys.restore.before":
            raise Unreachable("the monolith does not answer")

    with faults.armed(away), pytest.raises(Unreachable):
        await crossing.reattach(world.plan, pair, world.control, world.database)
    assert await crossing.reattach(world.plan, pair, world.control, world.database) == []
    assert await world.run("monolith", REAL_KEYS) == [(2,)]


async def test_children_without_parents_are_counted_once_nobody_checks_the_key_any_more(world: World) -> None:
    async def orphans() -> int:
        return await crossing.orphans(world.plan, "trading", "trades", world.control, world.database)

    for service in world.plan.services:
        await crossing.capture(world.plan, world.pair(service), world.control)
    assert await orphans() == 0
    await crossing.detach(world.plan, world.pair("trading"), world.control)
    await world.run("monolith", "DELETE FROM users WHERE id = 1")
    assert await orphans() == 0  # its queue was followed meanwhile
    await world.run("monolith", "INSERT INTO trades VALUES (77, 9999, NULL), (78, 9999, NULL), (79, 2, 12345)")
    assert await orphans() == 2
    assert await crossing.orphans(world.plan, "accounts", "users", world.control, world.database) == 0
