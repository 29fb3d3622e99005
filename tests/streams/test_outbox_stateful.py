"""Any order of writes, deliveries (late, twice, by a relay that was overtaken), crashes and switches: in the end both
sides are what a plain dictionary says."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cutover.errors import StaleAttempt
from cutover.postgres import outbox_lease, outbox_source
from cutover.postgres.databases import Database, Direction, Side, direction_from, other
from cutover.postgres.outbox_source import Batch
from tests.streams.outbox_world import Hands, World, open_world

KEYS = st.integers(1, 5)
NAMES = st.sampled_from(["a", "b", "c", None])


class Lab:
    """Two databases that stay for all examples, with relays' work done by hand in both directions."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.number = 0
        self.primary: Side = "monolith"
        self.hands: dict[Direction, Hands] = {}

    async def open(self, stack: AsyncExitStack) -> None:
        for direction in ("forward", "reverse"):
            await self.world.stream(direction).start(copy=False)
            self.hands[direction] = await stack.enter_async_context(self.world.hands(direction))

    async def reset(self) -> None:
        """Empty tables and a monolith that is the primary; versions go on rising."""
        await self.switch("monolith")
        for connection in (self.world.monolith, self.world.service):
            await connection.execute(
                "SET cutover.applier = 'on'; DELETE FROM items; RESET cutover.applier; DELETE FROM cutover.row_version;"
                f'DELETE FROM cutover."outbox_{self.world.pair.service}"'
            )

    async def switch(self, side: Side) -> None:
        self.number += 1
        await self.world.set_primary(side, self.number)
        self.primary = side

    async def overtake(self) -> None:
        """Every lease runs out and is taken anew: what was read under the old tokens is void."""
        for direction, hands in self.hands.items():
            service = self.world.pair.service
            async with self.world.pair.sink(direction).session() as sink:
                await sink.execute("UPDATE cutover.relay_lease SET expires_at = '-infinity'")
                hands.relay.tokens = await outbox_lease.beat(
                    sink, service, direction, hands.relay.owner, hands.relay.tokens, applied=0, failures=0,
                    problem="", seconds=600,
                )  # fmt: skip
                assert len(hands.relay.tokens) == 64

    @property
    def now(self) -> Hands:
        return self.hands[direction_from(self.primary)]

    async def read(self, hands: Hands, limit: int) -> Batch:
        ends = hands.ends
        return await outbox_source.read(
            ends.source, self.world.pair.service, ends.flows, ends.source_definition, list(hands.relay.tokens), limit
        )


def machine(lab: Lab, run: Any) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.model: dict[int, str | None] = {}
            self.kept: list[tuple[Hands, Batch, dict[int, int]]] = []
            run(lab.reset())

        def on_primary(self, sql: str, *values: object) -> bool:
            try:
                run(lab.world.at(lab.primary).execute(sql, *values))
            except asyncpg.UniqueViolationError:
                return False
            return True

        @rule(key=KEYS, name=NAMES)
        def write(self, key: int, name: str | None) -> None:
            sql = "INSERT INTO items (id, name) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET name = excluded.name"
            if self.on_primary(sql, key, name):
                self.model[key] = name

        @rule(key=KEYS)
        def delete(self, key: int) -> None:
            self.on_primary("DELETE FROM items WHERE id = $1", key)
            self.model.pop(key, None)

        @rule(key=KEYS, to=KEYS)
        def change_the_key(self, key: int, to: int) -> None:
            if self.on_primary("UPDATE items SET id = $2 WHERE id = $1", key, to) and key in self.model:
                self.model[to] = self.model.pop(key)

        @rule(key=KEYS, to=KEYS)
        def swap_names(self, key: int, to: int) -> None:
            if key in self.model and to in self.model and key != to:
                one, two = self.model[key], self.model[to]
                sql = (
                    f"BEGIN; UPDATE items SET name = NULL WHERE id = {key};"
                    f"UPDATE items SET name = {literal(one)} WHERE id = {to};"
                    f"UPDATE items SET name = {literal(two)} WHERE id = {key}; COMMIT"
                )
                assert self.on_primary(sql)
                self.model[key], self.model[to] = two, one

        @rule(limit=st.integers(1, 8))
        def a_relay_reads(self, limit: int) -> None:
            self.kept.append((lab.now, run(lab.read(lab.now, limit)), dict(lab.now.relay.tokens)))

        @precondition(lambda self: self.kept)
        @rule(choice=st.integers(0, 100), forget=st.booleans())
        def a_batch_is_delivered(self, choice: int, forget: bool) -> None:
            """Any batch that was ever read, any number of times; without `forget` the relay dies after the commit."""
            hands, batch, tokens = self.kept[choice % len(self.kept)]

            async def deliver() -> None:
                with suppress(StaleAttempt):
                    outcome = await hands.applier.carry(batch, tokens)
                    assert not outcome.refused
                    if forget:
                        await outbox_source.forget(hands.ends.source, lab.world.pair.service, outcome.done)

            run(deliver())

        @rule()
        def relays_are_overtaken(self) -> None:
            run(lab.overtake())

        @rule()
        def relays_recover(self) -> None:
            run(lab.now.drain())

        @rule()
        def versions_are_pruned(self) -> None:
            """By the holder of the leases, between batches: what was read before it was read under older leases."""
            run(lab.overtake())
            run(lab.now.relay.tidy(lab.now.ends, lab.now.relay.tokens, keep_seconds=0))

        @rule()
        def the_primary_changes_sides(self) -> None:
            run(lab.now.drain())
            run(lab.switch(other(lab.primary)))

        @invariant()
        def the_primary_is_what_the_model_says(self) -> None:
            rows = run(lab.world.at(lab.primary).fetch("SELECT id, name FROM items"))
            assert {row["id"]: row["name"] for row in rows} == self.model

        def teardown(self) -> None:
            run(lab.now.drain())
            sides: tuple[Side, Side] = ("monolith", "service")
            for side in sides:
                rows = run(lab.world.at(side).fetch("SELECT id, name FROM items"))
                assert {row["id"]: row["name"] for row in rows} == self.model, f"the {side}"
            for side in sides:
                assert not run(lab.world.at(side).fetchval("SELECT count(*) FROM cutover.quarantine"))

    return Machine


def literal(name: str | None) -> str:
    return f"'{name}'" if name else "NULL"


@pytest.mark.slow
def test_after_the_drain_both_sides_equal_the_model(monolith_db: Database, service_db: Database) -> None:
    with asyncio.Runner() as runner:

        def run(step: Coroutine[Any, Any, Any]) -> Any:
            return runner.run(step)

        stack = AsyncExitStack()
        lab = Lab(run(stack.enter_async_context(open_world(monolith_db, service_db, "stateful"))))
        try:
            run(lab.open(stack))
            run(lab.overtake())
            run_state_machine_as_test(
                machine(lab, run),
                settings=settings(
                    max_examples=12,
                    stateful_step_count=25,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    print_blob=True,
                ),
            )
        finally:
            run(stack.aclose())
