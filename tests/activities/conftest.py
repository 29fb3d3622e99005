"""Activities on real servers: a plan of three services with loose keys between them, and a hand on every database."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest_asyncio
from temporalio.testing import ActivityEnvironment

from activities import models as m
from activities.checking import ChecklistActivities
from activities.cleanup import CleanupActivities
from activities.context import Context
from activities.monitoring import MonitoringActivities
from activities.plans import PlanActivities
from activities.preparation import PreparationActivities
from activities.replication import ReplicationActivities
from activities.switching import SwitchActivities
from cutover.control import plans
from cutover.control.database import Control
from cutover.pairs import pair
from cutover.plan.dsn import variable
from cutover.plan.load import load_text
from cutover.postgres.databases import Database, Pair
from cutover.settings import Settings
from cutover.switch import reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.conftest import FreshDatabase
from tests.servers import Clusters
from tests.switch.conftest import drop_streams, order, verify
from tests.waiting import until

DDL = """
CREATE TABLE users (id bigint PRIMARY KEY, name text);
CREATE TABLE trades (id bigint PRIMARY KEY,
    user_id bigint NOT NULL CONSTRAINT trades_user_id_fkey REFERENCES users ON DELETE CASCADE);
CREATE TABLE outcomes (id bigint PRIMARY KEY,
    trade_id bigint NOT NULL CONSTRAINT outcomes_trade_id_fkey REFERENCES trades ON DELETE CASCADE);
INSERT INTO users SELECT i, 'user ' || i FROM generate_series(1, 50) i;
INSERT INTO trades SELECT i, 1 + i % 50 FROM generate_series(1, 100) i;
INSERT INTO outcomes SELECT i, i FROM generate_series(1, 100) i;
"""
# Switched in this order: what a deleted user brings about passes through a service that is retired before.
PLAN = """
migration: {migration}
monolith: {{database: monolith}}
services:
  {trading}:
    database: trading_db
    tables: {{trades: {{}}}}
    foreign_keys: {{trades_user_id_fkey: loose}}
  {ledger}:
    database: ledger_db
    tables: {{outcomes: {{}}}}
    foreign_keys: {{outcomes_trade_id_fkey: loose}}
  {accounts}:
    database: accounts_db
    tables: {{users: {{}}}}
default_tasks: false
cleanup: {{archive_dir: {archive}, quiet_for: 0s}}
"""

SERVICE_DATABASES = ("trading_db", "ledger_db", "accounts_db")

In = TypeVar("In")
Out = TypeVar("Out")


class Ground:
    """The databases of a migration, its plan and its activities."""

    def __init__(self, settings: Settings, control: Control, text: str) -> None:
        self.settings = settings
        self.control = control
        self.plan = load_text(text)
        self.context = Context(settings, control)
        self.preparation = PreparationActivities(self.context)
        self.plans = PlanActivities(self.context)
        self.checking = ChecklistActivities(self.context)
        self.monitoring = MonitoringActivities(self.context)
        self.replication = ReplicationActivities(self.context)
        self.switching = SwitchActivities(self.context)
        self.cleanup = CleanupActivities(self.context)

    @property
    def services(self) -> list[str]:
        return list(self.plan.services)

    def ref(self, service: str | None = None) -> m.Ref:
        return m.Ref(migration=self.plan.migration, plan_hash=self.plan.hash, service=service)

    def gate(self, name: str, service: str | None = None) -> m.GateRequest:
        return m.GateRequest(ref=self.ref(service), gate=name)

    def pair(self, service: str) -> Pair:
        return pair(self.plan, service, self.settings.database)

    def environment(self, service: str) -> SwitchEnvironment:
        return SwitchEnvironment(self.plan, self.pair(service), self.control)

    async def do(self, method: Callable[[In], Awaitable[Out]], argument: In) -> Out:
        """Run an activity as a worker does, with heartbeats and translated errors."""
        done: Out = await ActivityEnvironment().run(method, argument)
        return done

    async def on(self, database: str, sql: str, *args: object) -> list[tuple[Any, ...]]:
        """One statement straight in a database."""
        async with self.settings.database(database).session("test") as connection:
            return [tuple(row) for row in await connection.fetch(sql, *args)]

    async def prepare(self) -> None:
        """All steps of Preparation."""
        await self.do(self.plans.claim_tables, self.ref())
        for service in self.services:
            for step in (
                self.preparation.create_schema,
                self.preparation.compare_schemas,
                self.preparation.install_fences,
                self.preparation.capture_loose_keys,
                self.preparation.take_fingerprints,
            ):
                await self.do(step, self.ref(service))

    async def replicate(self) -> None:
        """Every service's stream with its first copy, and a verified pass over each table."""
        for service in self.services:
            ref, environment = self.ref(service), self.environment(service)
            await self.do(self.replication.start_stream, ref)
            await until(environment.stream("forward").ready, "the first copy is done")
            await self.do(self.replication.arm_fences, ref)
            await self.do(self.replication.prepare_changed_keys, ref)
            await verify(environment)

    async def switch(self, service: str) -> None:
        """The writes of a service to its database."""
        environment = self.environment(service)
        await self.do(self.switching.detach_keys, self.ref(service))
        await reverse.make_ready(environment, "service")
        request = order(environment, "service")
        outcome = await section.run(environment, request, lambda _: None)
        assert outcome.result == "done", outcome.reason
        done = m.SwitchOrder(ref=self.ref(service), switch_id=request.switch_id, to_side="service")
        await self.do(self.switching.finish_switch, done)


@pytest_asyncio.fixture
async def ground(
    monolith_db: Database,
    control: Control,
    control_db: Database,
    fresh_database: FreshDatabase,
    clusters: Clusters,
    tmp_path: Path,
) -> AsyncIterator[Ground]:
    databases = {"monolith": monolith_db, "control": control_db}
    for name in SERVICE_DATABASES:
        databases[name] = await fresh_database(clusters.services, name)
    settings = Settings({variable(name): database.dsn for name, database in databases.items()})
    mark = uuid4().hex[:6]
    names = {"migration": f"m{mark}", **{name: f"{name}_{mark}" for name in ("trading", "ledger", "accounts")}}
    made = Ground(settings, control, PLAN.format(**names, archive=tmp_path / "archive"))
    await plans.register(control, made.plan, "test")
    await plans.bind(control, made.plan.migration, made.plan.hash, "test")
    async with monolith_db.session() as connection:
        await connection.execute(DDL)
    try:
        yield made
    finally:
        for service in made.services:
            await drop_streams(made.environment(service))
