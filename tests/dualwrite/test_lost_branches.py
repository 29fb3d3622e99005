"""Strong writes whose branch is gone at the other side when it is to be committed there."""

import pytest

from cutover import faults
from cutover.postgres.outbox_schema import outbox_table
from tests.dualwrite.both_sides import SERVICE, Both, until_true


async def waiting(both: Both) -> list[str]:
    """The keys of trades whose intents wait at the primary."""
    sql = f"SELECT array_agg(key[1] ORDER BY key[1]) FROM {outbox_table(SERVICE).sql} WHERE tbl = 'trades'"
    return await both.on("monolith", sql) or []


@pytest.mark.parametrize("ended_by", ["a standby without it", "a janitor"])
async def test_a_branch_that_is_not_there_any_more_leaves_its_intents_to_the_stream(both: Both, ended_by: str) -> None:
    trading = await both.service()

    async def ended(at: str) -> None:
        if at != "strong.end.before":
            return
        if ended_by == "a janitor":
            assert [one.decision for one in await both.janitor().resolve(older_than=0)] == ["commit"]
            return
        for gid in await both.branches():  # as the other side's standby is promoted before it has heard of it
            await both.on("service", f"ROLLBACK PREPARED '{gid}'")

    with faults.armed(ended):
        await trading.execute("INSERT INTO trades (id) VALUES (1)")
    await trading.execute("INSERT INTO trades (id) VALUES (2)")

    async def second_is_forgotten() -> bool:
        return "2" not in await waiting(both)

    await until_true("what both sides have is forgotten", second_is_forgotten)
    assert await waiting(both) == ["1"]
    assert trading.gate.counters.in_doubt == 1
    assert await both.ids("service") == ([1, 2] if ended_by == "a janitor" else [2])
    await both.drained()
    await both.require_equal()
    assert await waiting(both) == []
