"""A control database that was restored to before a switch: nothing of the side in use is dropped."""

from collections.abc import Awaitable, Callable

import pytest

from cutover.errors import GateClosed, NotYet
from cutover.postgres.databases import SIDES, Side
from cutover.switch import finish, rebuild, reverse
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import order
from tests.switch.test_section import switch

#: More than the tokens that the control database has lost.
TRIES = 20
KEPT = ("route", "switch", "switch_outcome")
STREAMS = """
SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()
UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
    WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL SELECT 'publication ' || pubname FROM pg_publication
ORDER BY 1
"""


async def streams(env: SwitchEnvironment) -> dict[Side, list[str]]:
    """What either database has of streams and of records of changed keys."""
    found: dict[Side, list[str]] = {}
    for side in SIDES:
        async with env.pair.at(side).session() as connection:
            found[side] = [row[0] for row in await connection.fetch(STREAMS)]
    return found


async def backed_up(env: SwitchEnvironment) -> None:
    for table in KEPT:
        await env.control.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM control.{table}")


async def restored(env: SwitchEnvironment) -> None:
    for table in KEPT:
        await env.control.execute(f"DELETE FROM control.{table}")
        await env.control.execute(f"INSERT INTO control.{table} SELECT * FROM kept_{table}")


async def as_a_worker(work: Callable[[], Awaitable[object]]) -> None:
    """Tries again while it is told that this passes by itself."""
    for _ in range(TRIES):
        try:
            await work()
            return
        except NotYet:
            continue
    raise AssertionError(f"not to an end in {TRIES} tries")


WORK: dict[str, Callable[[SwitchEnvironment], Awaitable[object]]] = {
    "take-back": lambda env: reverse.take_back(env, "service"),
    "finish": lambda env: finish.finish(env, order(env, "monolith")),
    "rebuild": lambda env: rebuild.rebuild(env, lambda _: None),
}


@pytest.mark.parametrize("name", WORK)
async def test_what_drops_a_stream_between_switches_drops_none_where_a_side_knows_a_later_epoch(
    env: SwitchEnvironment, name: str
) -> None:
    await reverse.make_ready(env, "service")
    await backed_up(env)
    assert (await switch(env, "service")).result == "done"
    there = await streams(env)
    await restored(env)
    with pytest.raises(GateClosed, match="says epoch 1 and the control database 0: it has lost its last commits"):
        await as_a_worker(lambda: WORK[name](env))
    assert await streams(env) == there
