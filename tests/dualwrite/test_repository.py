"""DualWriteRepository: the kinds of models, the caller's own transaction, reads by class, and wrong use."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypedDict

import pytest
from pydantic import BaseModel

from cutover.alerts.store import recent
from cutover.control.database import Control
from cutover.dualwrite import AnswerLost, DualWriteRepository, ServicePool, verifying
from cutover.errors import ConfigError
from cutover.flags import store
from cutover.postgres.databases import SIDES, Database
from cutover.postgres.identifiers import TableName
from tests.dualwrite.both_sides import MIGRATION, SERVICE, Both, open_both, plan, until_true

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


class Trade(BaseModel):
    id: int
    name: str | None = None
    note: str | None = None
    at: datetime | None = None


@dataclass
class TradeData:
    id: int
    name: str | None = None
    note: str | None = None
    at: datetime | None = field(default=None)


class TradeDict(TypedDict, total=False):
    id: int
    name: str | None
    note: str | None
    at: datetime | None


class Position(BaseModel):
    account: str
    symbol: str
    amount: Decimal


MODELS: list[tuple[Any, Any]] = [
    (Trade, Trade),
    (TradeData, TradeData),
    (TradeDict, lambda **values: dict(values)),
    (dict[str, Any], lambda **values: dict(values)),
]


def value(row: Any, name: str) -> Any:
    return row[name] if isinstance(row, dict) else getattr(row, name)


@pytest.mark.parametrize(("model", "make"), MODELS)
async def test_rows_are_written_found_and_deleted_at_both_sides(both: Both, model: Any, make: Any) -> None:
    trades = await DualWriteRepository.open(await both.service(), model, "trades")
    made = await trades.insert(make(id=1, name="one", note="a"))
    assert value(made, "at") is not None, "the database's default"
    await both.require_equal()
    assert await trades.insert_many([make(id=2, name="two", at=NOW), make(id=3, note="a")]) == 2
    found = await trades.find_by_id(2)
    assert (value(found, "name"), value(found, "at")) == ("two", NOW)
    changed = await trades.update(make(id=2, name="zwei", note="b", at=NOW))
    assert value(changed, "name") == "zwei"
    assert await trades.update(make(id=99, name="x", note=None, at=NOW)) is None
    for note in ("c", "d"):
        assert value(await trades.upsert(make(id=4, note=note)), "note") == note
    assert [value(row, "id") for row in await trades.find({"note": "a"}, order_by="-id")] == [3, 1]
    assert [value(row, "id") for row in await trades.find({"name": None}, order_by=["id"], limit=1)] == [3]
    assert await trades.delete(3)
    assert not await trades.delete(3)
    assert await trades.find_by_id(3) is None
    assert await both.ids("service") == [1, 2, 4]
    await both.require_equal()


async def test_a_part_of_a_mapping_writes_a_part_of_the_row(both: Both) -> None:
    trades = await DualWriteRepository.open(await both.service(), TradeDict, "trades")
    await trades.insert({"id": 1, "name": "one", "note": "a"})
    changed = await trades.update({"id": 1, "note": "b"})
    assert changed is not None
    assert (changed["name"], changed["note"]) == ("one", "b")


async def test_a_key_of_two_columns(both: Both) -> None:
    positions = await DualWriteRepository.open(await both.service(), Position, "positions")
    await positions.upsert(Position(account="a", symbol="X", amount=Decimal("1.5")))
    await positions.upsert(Position(account="a", symbol="X", amount=Decimal("2.5")))
    found = await positions.find_by_id("a", "X")
    assert found is not None
    assert found.amount == Decimal("2.5")
    with pytest.raises(ConfigError, match="its key is \\(account, symbol\\), and 1 values came"):
        await positions.find_by_id("a")
    await both.require_equal()


async def test_it_takes_part_in_the_callers_transaction(both: Both) -> None:
    trading = await both.service()
    trades = await DualWriteRepository.open(trading, Trade, "trades")
    positions = await DualWriteRepository.open(trading, Position, "positions")

    async def work(connection: Any, fail: bool) -> None:
        await trades.insert(Trade(id=1, name="one"), connection=connection)
        assert await trades.find_by_id(1, connection=connection) is not None
        await positions.upsert(Position(account="a", symbol="X", amount=Decimal(1)), connection=connection)
        if fail:
            raise KeyError

    with pytest.raises(KeyError):
        await trading.run_in_transaction(lambda c: work(c, True))
    assert await trades.find() == []
    await trading.run_in_transaction(lambda c: work(c, False))
    await both.require_equal()
    assert await both.ids("service") == [1]


async def test_settings_follow_flags_and_plan(
    control: Control, control_db: Database, monolith_db: Database, service_db: Database
) -> None:
    async with open_both(control, control_db, monolith_db, service_db, plan(consistency="strong")) as both:
        trades = await DualWriteRepository.open(await both.service(None), Trade, "trades", verify_consistency="5%")
        assert not trades.settings.write_to_both, "nothing is streamed yet"
        assert trades.settings.verify_consistency == 0
        await trades.insert(Trade(id=1))
        assert await both.ids("service") == []
        await both.start()

        async def in_force() -> bool:
            return trades.settings.write_to_both

        await until_true("the stream is noticed", in_force)
        assert trades.settings.verify_consistency == 0.05
        await trades.insert(Trade(id=2))
        assert await both.ids("service") == [2]


async def test_write_to_both_and_read_from_primary_of_one_repository(both: Both) -> None:
    trading = await both.service("eventual")
    strong = await DualWriteRepository.open(trading, Trade, "trades", write_to_both=True)
    await strong.insert(Trade(id=1))
    assert await both.ids("service") == [1]
    eventual = await DualWriteRepository.open(trading, Trade, "trades", read_from_primary=False)
    await eventual.insert(Trade(id=2))
    await store.set_read_from_new(both.control, MIGRATION, SERVICE, True, actor="test")
    await until_true("the flag is followed", lambda: _moved(trading))
    assert [row.id for row in await eventual.find()] == [1], "the other side has not got it yet"
    assert await eventual.find_by_id(2) is None
    assert await eventual.find_by_id(2, read="read_your_writes") is not None
    assert [row.id for row in await strong.find(order_by="id")] == [1, 2]
    assert await strong.find_by_id(2, read="stale_ok") is None


async def _moved(trading: ServicePool) -> bool:
    return trading.gate.route.read_from_new


async def test_samples_of_reads_are_compared_and_a_mismatch_is_told(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    trading = await both.service("eventual")
    trades = await DualWriteRepository.open(trading, Trade, "trades", verify_consistency=1.0)
    counters = trading.gate.counters
    await trades.insert(Trade(id=1, name="one"))
    await trades.find_by_id(1)
    # its change waits, so that it is no mismatch
    assert counters.verified == counters.mismatches == 0
    await both.drained()

    async def verified(count: int = 1) -> bool:
        return counters.verified == count

    await until_true("the sample is compared", verified)
    assert counters.mismatches == 0
    await both.put_behind_the_fence("UPDATE trades SET note = 'bent'")
    [row] = await trades.find({"name": "one"})
    assert row.note is None, "the caller's answer is what its side says"
    await until_true("the second sample is compared", lambda: verified(2))
    assert counters.mismatches == 1
    [alert] = await recent(both.control, MIGRATION)
    assert alert.alert.kind == "read-mismatch"
    assert "bent" not in alert.alert.text
    assert [tuple(r) for r in await both.control.fetch("SELECT table_name, key_json FROM control.changed_key")] == [
        ("trades", '["1"]')
    ]
    monkeypatch.setattr(verifying, "MOST_WAITING", 0)
    await trades.find_by_id(1)
    assert counters.unverified == 1


async def test_a_table_that_the_plan_does_not_name_is_not_verified_and_ends_no_verification(both: Both) -> None:
    for side in SIDES:
        await both.on(side, "CREATE TABLE drafts (id int PRIMARY KEY)")
    trading = await both.service("eventual")
    with pytest.raises(ConfigError, match="the plan of trading_engine does not name it"):
        await DualWriteRepository.open(trading, dict, "drafts", verify_consistency=0.5)
    await DualWriteRepository.open(trading, dict, "drafts")
    trades = await DualWriteRepository.open(trading, Trade, "trades", verify_consistency=1.0)
    assert trading.verifier is not None
    trading.verifier.offer(TableName("public", "drafts"), ("1",))
    await trades.find_by_id(7)

    async def verified() -> bool:
        return (trading.gate.counters.unverified, trading.gate.counters.verified) == (1, 1)

    await until_true("the sample behind it is compared", verified)


async def test_a_row_that_is_deleted_before_it_is_read_back_is_an_answer_lost_and_no_more(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    trading = await both.service("eventual")
    trades = await DualWriteRepository.open(trading, Trade, "trades")
    fetchrow = trading.fetchrow

    async def loses_its_answer(sql: str, *args: object, write: bool | None = None, **options: Any) -> Any:
        record = await fetchrow(sql, *args, write=write, **options)
        if not write:
            return record
        await both.on("monolith", "DELETE FROM trades")  # a consumer of the rows
        raise AnswerLost("was done, once")

    monkeypatch.setattr(trading, "fetchrow", loses_its_answer)
    with pytest.raises(AnswerLost):
        await trades.insert(Trade(id=1))
    with pytest.raises(AnswerLost):
        await trades.upsert(Trade(id=1))
    assert await trades.update(Trade(id=1)) is None, "there is none with its key"


class Lacks(BaseModel):
    id: int
    name: str | None = None
    note: str | None = None


class HasMore(Trade):
    nota: str = ""


class WrongKey(BaseModel):
    id: str
    name: str | None = None
    note: str | None = None
    at: datetime | None = None


class NoKey(BaseModel):
    name: str | None = None
    note: str | None = None
    at: datetime | None = None


class Plain:
    id: int


@pytest.mark.parametrize(
    ("model", "table", "message"),
    [
        (Trade, "trade", "has no table 'trade' \\(did you mean 'trades'"),
        (Trade, "keyless", "has no primary key"),
        (Lacks, "trades", "it lacks 'at' \\(add it, or say without=\\['at'\\]\\)"),
        (HasMore, "trades", "it has 'nota', which the table has not"),
        (WrongKey, "trades", "its key 'id' is str, and integer in the table"),
        (NoKey, "trades", "it lacks 'id', a part of the key"),
        (Plain, "trades", "'Plain' is no model of a row"),
    ],
)
async def test_what_does_not_fit_is_found_at_the_start(both: Both, model: Any, table: str, message: str) -> None:
    await both.on("monolith", "CREATE TABLE keyless (id int, name text, note text, at timestamptz)")
    trading = await both.service("eventual")
    with pytest.raises(ConfigError, match=message):
        await DualWriteRepository.open(trading, model, table)


async def test_wrong_calls_are_named(both: Both) -> None:
    trading = await both.service("eventual")
    with pytest.raises(ConfigError, match="was not checked"):
        await DualWriteRepository(trading, Trade, "trades").find()
    with pytest.raises(ConfigError, match="verify_consistency is '5 percent'"):
        DualWriteRepository(trading, Trade, "trades", verify_consistency="5 percent")
    trades = await DualWriteRepository.open(trading, Lacks, "trades", without=["at"])
    with pytest.raises(ConfigError, match="no column 'nam' here; did you mean 'name'"):
        await trades.find({"nam": 1})
    with pytest.raises(ConfigError, match="no column 'id; DROP TABLE trades'"):
        await trades.find(order_by="id; DROP TABLE trades")
    with pytest.raises(ConfigError, match="a Trade was given where a Lacks is wanted"):
        await trades.insert(Trade(id=1))  # type: ignore[arg-type]
    mappings = await DualWriteRepository.open(trading, TradeDict, "trades")
    with pytest.raises(ConfigError, match="no column 'nmae'; did you mean 'name'"):
        await mappings.insert({"id": 1, "nmae": "x"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ConfigError, match="no value for 'id', a part of its key"):
        await mappings.update({"name": "x"})
