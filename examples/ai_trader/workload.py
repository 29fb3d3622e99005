"""What one task of a client does: it owns rows, and is the only one who writes them.

So the history of each key is sequential, and what a read must see is known.
"""

import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from examples.ai_trader import statements
from examples.ai_trader.client import Client, Row, Step
from examples.ai_trader.oplog import Write
from examples.ai_trader.statements import CHANGES, DELETE, FEATURES, INSERT, SYMBOLS, UPDATE
from examples.ai_trader.tables import GENERATED, OWNERS, TABLES, Key

#: Lanes over all clients; a generated row belongs to lane `number % LANES`.
LANES = 512
#: Rows of a table that a lane keeps working on; above it deletes are preferred.
KEEP = 40


class Lane:
    """One task's rows and what it does with them; `number` is unique over all clients that are alive."""

    def __init__(self, client: Client, number: int) -> None:
        self._client = client
        self._number = number
        self._tokens = 0
        self.rng = random.Random(f"{client.run}/{number}")
        self._rows: dict[str, list[Row]] = {name: [] for name in TABLES}
        self._generated_users = 0
        self._acts: tuple[tuple[int, Callable[[], Awaitable[int]]], ...] = (
            (12, self.place_order),
            (8, self.order_of_a_customer),
            (10, self.decide),
            (6, self.evaluate),
            (4, self.calibrate),
            (3, self.register),
            (3, self.add_strategy),
            (2, self.start_agent),
            (6, self.report),
            (34, self.change),
            (4, self.close_position),
            (8, self.remove),
        )

    async def adopt(self, each: int = 12) -> None:
        """Takes over some of the generator's rows, those of this lane."""
        for name, table in TABLES.items():
            if name == "ai_decision_features":
                keys = [row.first_key for row in self._rows["ai_decisions"]]
                found = await self._client.fetch(name, table.by_key, keys)
            else:
                if name == "users":
                    (count,) = await self._client.fetch(name, statements.GENERATED_USERS)
                    self._generated_users = count["rows"]
                else:
                    (count,) = await self._client.fetch(name, statements.ROW_ESTIMATE, name)
                total = count["rows"]
                numbers = range(self._number % LANES or LANES, total + 1, LANES)
                suffix = "@traders.example" if name == "users" else ""
                chosen = self.rng.sample(numbers, min(each, len(numbers)))
                tokens = [f"{GENERATED}{number}{suffix}" for number in chosen]
                found = await self._client.fetch(name, table.by_token, tokens)
            self._rows[name] += [Row(name, table.key(r["key"]), r["revision"], adopted=True) for r in found]

    async def act(self) -> int:
        """One thing that a trading platform does; gives the writes it tried (0: only read)."""
        weights = [weight for weight, _ in self._acts]
        (chosen,) = self.rng.choices([act for _, act in self._acts], weights)
        return await chosen() or await self.register()

    # what is done ------------------------------------------------------------------------------

    async def register(self) -> int:
        balance = statements.money(self.rng, 0, 50_000)
        await self._perform([self._insert("users", (f"Client {self._number}", balance))])
        return 1

    async def add_strategy(self) -> int:
        user = self._own_user()
        if user is None:
            return 0
        parameters = f'{{"fast": {self.rng.randrange(5, 25)}, "slow": {self.rng.randrange(30, 200)}}}'
        await self._perform([self._insert("strategies", (user.key, "Breakout", parameters), parent=user)])
        return 1

    async def start_agent(self) -> int:
        await self._perform([self._insert("agent_status", ("signal", "idle"))])
        return 1

    async def place_order(self) -> int:
        """A trade and the position it opens or changes, in one transaction."""
        user = self._own_user()
        if user is None:
            return 0
        symbol = self.rng.choice(SYMBOLS)
        held = next((r for r in user.children if r.table == "positions" and r.symbol == symbol), None)
        strategy = self.rng.choice([None, *(r for r in user.children if r.table == "strategies")])
        if strategy is not None:
            strategy.linked = True
        values = statements.trade(self.rng, user.key, strategy.key if strategy else None, symbol)
        steps = [self._insert("trades", values, parent=user)]
        if held is None:
            lot = (statements.money(self.rng, 0.1, 9), statements.money(self.rng, 1, 60_000))
            steps.append(self._insert("positions", (user.key, symbol, *lot), parent=user, symbol=symbol))
        else:
            steps.append(self._update(held))
        await self._perform(steps)
        return 2

    async def order_of_a_customer(self) -> int:
        """A trade of one of the platform's (generated) users; a few of them trade most."""
        if not self._generated_users:
            return 0
        user = 1 + int(self.rng.random() ** 4 * self._generated_users)
        await self._perform([self._insert("trades", statements.trade(self.rng, user, None, self.rng.choice(SYMBOLS)))])
        return 1

    async def decide(self) -> int:
        """A decision of the model and what it was made of, in one transaction."""
        key = str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        strategy = self._any("strategies", adopted=True)  # nobody deletes those
        values = statements.decision(self.rng, key, strategy.key if strategy else None)
        steps = [self._insert("ai_decisions", values, key=key)]
        for name in self.rng.sample(FEATURES, 2):
            value = (uuid.UUID(key), name, self.rng.uniform(-9, 9), statements.money(self.rng, 0, 1))
            steps.append(self._insert("ai_decision_features", value, key=(key, name), parent=steps[0]))
        await self._perform(steps)
        return len(steps)

    async def evaluate(self) -> int:
        trade = self._any("trades", adopted=False)
        if trade is None:
            return 0
        values = (trade.key, None, statements.money(self.rng, -500, 500))
        await self._perform([self._insert("ai_trade_outcomes", values, parent=trade)])
        return 1

    async def calibrate(self) -> int:
        bucket = self.rng.randrange(10)
        values = (bucket, statements.money(self.rng, 0, 1), self.rng.randrange(5_000))
        await self._perform([self._insert("ai_calibration_log", values)])
        return 1

    async def report(self) -> int:
        """An agent's heartbeat together with the strategy that it runs, in one transaction."""
        agent, strategy = self._any("agent_status"), self._any("strategies")
        if agent is None or strategy is None:
            return 0
        await self._perform([self._update(strategy), self._update(agent)])
        return 2

    async def change(self) -> int:
        row = self._any(self.rng.choice(tuple(TABLES)))
        if row is None:
            return 0
        await self._perform([self._update(row)])
        return 1

    async def close_position(self) -> int:
        row = self._any("positions", adopted=False)
        if row is None or not row.symbol:
            return 0
        write = Write("positions", "update", row.key, row.revision + 1)
        if await self._perform([Step(write, statements.CLOSE_POSITION, (row.key, row.revision + 1), row)]):
            row.symbol = ""
        return 1

    async def remove(self) -> int:
        """Deletes a row: of a table that has many, or of any."""
        full = [name for name, rows in self._rows.items() if len(rows) > KEEP]
        name = self.rng.choice(full or list(TABLES))
        # Rows of the generator may have children in other lanes: of those only what nothing hangs on is deleted.
        leaf = name in ("ai_trade_outcomes", "ai_calibration_log", "ai_decision_features", "positions")
        row = self._any(name, adopted=None if leaf else False)
        if row is None:
            return 0
        family = row.family()
        if row.linked or len(family) > 8:
            # Too much hangs on it: it stays in the database and is worked on no more, and neither is what it hangs
            # on, whose delete would take it along unnoted.
            self._forget(_root(row))
            return 0
        # Both ways in turn: the children go by the database's cascade, or the application takes them away first.
        first = name != "ai_decisions" and self.rng.random() < 0.5
        done = 0
        if first:
            done += await self._take_away(family)
            if row not in self._rows[name]:
                return done  # an unknown outcome: nobody knows what hangs on it now
            family = row.family()
        step = self._delete(row)
        if name == "ai_decisions":
            step.write.cascade = [child.reference for child in family]
        else:
            step.write.may_cascade = [child.reference for child in family]
        if await self._perform([step]):
            self._forget(*family)
            if name != "ai_decisions":
                done += await self._take_away(family, loose=True)
        return done + 1

    async def look(self) -> None:
        """One read: of a row of one's own, which must be as acknowledged, or of a list that may be a little old."""
        if self.rng.random() < 0.5:
            row = self._any(self.rng.choice(tuple(TABLES)))
            if row is not None:
                await self._client.look_at(row)
        else:
            table, sql = self.rng.choice(statements.BROWSE)
            user = 1 + int(self.rng.random() ** 4 * max(self._generated_users, 1))
            await self._client.browse(table, sql, user)

    # rows --------------------------------------------------------------------------------------

    def _any(self, table: str, adopted: bool | None = None) -> Row | None:
        rows = self._rows[table]
        if adopted is not None:
            rows = [row for row in rows if row.adopted == adopted]
        return self.rng.choice(rows) if rows else None

    def _own_user(self) -> Row | None:
        return self._any("users", adopted=False)

    def _token(self) -> str:
        self._tokens += 1
        return f"{self._client.run}-{self._number}-{self._tokens}"

    def _forget(self, *rows: Row) -> None:
        for row in (member for top in rows for member in (*top.family(), top)):
            if row in self._rows[row.table]:
                self._rows[row.table].remove(row)
            if row.parent is not None and row in row.parent.children:
                row.parent.children.remove(row)

    async def _take_away(self, rows: Sequence[Row], *, loose: bool = False) -> int:
        """Deletes rows, the tables of each service in one transaction."""
        done = 0
        for service in ("analytics", "trading_engine", "orchestrator"):
            mine = [row for row in rows if OWNERS[row.table] == service]
            if mine:
                await self._perform([self._delete(row, loose=loose) for row in mine])
                done += len(mine)
        return done

    # statements --------------------------------------------------------------------------------

    async def _perform(self, steps: Sequence[Step]) -> bool:
        """Sends the steps in one transaction and keeps book of the rows; True if they are done."""
        outcome = await self._client.perform(steps)
        if outcome == "ok":
            for step in steps:
                self._done(step)
        elif outcome == "unknown":
            # Nobody knows what is there now: these rows, and what they hang on, are left as they are for ever.
            for row in [step.row for step in steps if step.row is not None]:
                self._forget(_root(row))
        return outcome == "ok"

    def _done(self, step: Step) -> None:
        write, row = step.write, step.row
        assert row is not None
        assert write.key is not None
        if write.action == "delete":
            self._forget(row)
            return
        row.key, row.revision = write.key, write.revision
        if write.action == "insert":
            self._rows[row.table].append(row)
            if row.parent is not None:
                row.parent.children.append(row)

    def _insert(
        self,
        table: str,
        arguments: Sequence[Any],
        *,
        key: Key | None = None,
        parent: "Row | Step | None" = None,
        symbol: str = "",
    ) -> Step:
        row = Row(table, key or "", 0, parent=parent.row if isinstance(parent, Step) else parent, symbol=symbol)
        if isinstance(key, tuple):
            return Step(Write(table, "insert", key, 0, "/".join(key)), INSERT[table], arguments, row)
        token = self._token() + ("@traders.example" if table == "users" else "")
        if table == "agent_status":
            key = token
        return Step(Write(table, "insert", key, 0, token), INSERT[table], (token, *arguments), row)

    def _update(self, row: Row) -> Step:
        arguments: tuple[Any, ...] = (row.first_key, row.revision + 1, *CHANGES[row.table](self.rng))
        if isinstance(row.key, tuple):
            arguments = (*arguments, row.key[1])
        return Step(Write(row.table, "update", row.key, row.revision + 1), UPDATE[row.table], arguments, row)

    def _delete(self, row: Row, *, loose: bool = False) -> Step:
        arguments: tuple[Any, ...] = (row.first_key, row.revision)
        if isinstance(row.key, tuple):
            arguments = (*arguments, row.key[1])
        return Step(Write(row.table, "delete", row.key, row.revision), DELETE[row.table], arguments, row, loose)


def _root(row: Row) -> Row:
    while row.parent is not None:
        row = row.parent
    return row
