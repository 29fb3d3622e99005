"""Each thing that is wrong has a command that leads on, and the doctor names the one that comes first."""

import asyncio
import shlex

import pytest
from typer.testing import CliRunner

from cutover import doctor
from cutover.cli.main import app
from cutover.errors import Exit, GateClosed
from cutover.monitor import catalogs
from cutover.postgres import fence
from cutover.postgres.databases import Side
from cutover.switch import gates, mending, servers
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.rebuild import rebuild
from tests.switch.conftest import Work
from tests.switch.test_fences import TRADES, on, state
from tests.switch.test_mending import in_order
from tests.switch.test_section import writable

BARE = f"DROP TRIGGER {fence.WRITES} ON trades; DROP TRIGGER {fence.TRUNCATE} ON trades"
WIDER = "ALTER TABLE trades ADD COLUMN venue text"


async def remedy(env: SwitchEnvironment) -> str:
    return (await doctor.examine(env.plan, env.pair, env.control)).remedy


async def follow(env: SwitchEnvironment, work: Work) -> str:
    """Types what the doctor says, and nothing else; which deed it was."""
    said = await remedy(env)
    cutover, *arguments = shlex.split(said)
    assert cutover == "cutover"
    arguments += ["--yes"] if said.endswith("--mend") else []
    values = dict(work.context.settings.values)
    done = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=values)
    # a mend ends with what is wrong still
    assert done.exit_code in ((Exit.DONE, Exit.REFUSED) if said.endswith("--mend") else (Exit.DONE,)), done.output
    return next(one for one in arguments if one in ("--mend", "--accept-server", "--accept-ddl"))


async def another_server(env: SwitchEnvironment) -> None:
    """As if a standby of the monolith had been promoted: the timeline of now is not the one that was noted."""
    assert await servers.changed(env) == []
    await env.control.execute(
        "UPDATE control.server_identity SET timeline = timeline + 1 WHERE migration = 'test' AND database = $1",
        env.pair.monolith.name,
    )


async def test_where_all_is_wrong_the_doctors_commands_one_after_the_other_lead_to_the_end(
    env: SwitchEnvironment, work: Work
) -> None:
    await another_server(env)
    for side in ("monolith", "service"):
        await on(env, side, WIDER)
        await on(env, side, BARE)
    await env.stream("forward").stop()
    async with env.pair.monolith.session() as source:
        await source.execute("SELECT pg_drop_replication_slot($1)", env.changed("forward").slot)
        await source.execute("INSERT INTO trades (price, note) VALUES (1, 'meanwhile')")
    deeds: list[str] = []
    while await remedy(env):
        assert len(deeds) < 5
        deeds.append(await follow(env, work))
    assert deeds == ["--mend", "--accept-server", "--mend", "--accept-ddl"]
    await in_order(env)
    assert not await writable(env, "service")
    async with env.pair.target.session() as sink:
        assert await sink.fetchval("SELECT count(*) FROM trades WHERE note = 'meanwhile'") == 1


async def test_on_a_server_that_nobody_accepted_no_lost_stream_is_built_over_the_other_sides_rows(
    env: SwitchEnvironment, work: Work
) -> None:
    await another_server(env)
    await env.stream("forward").drop()
    found = await doctor.examine(env.plan, env.pair, env.control)
    assert found.remedy == f"cutover doctor test --service {env.pair.service} --accept-server --by YOU --reason WHY"
    assert any("timeline" in problem for problem in found.problems)
    assert await mending.mend(env, lambda _: None) == []
    with pytest.raises(GateClosed, match=r"lost commits, then: cutover doctor .* --accept-server"):
        await rebuild(env, lambda _: None)
    assert not await env.stream("forward").exists()
    assert await servers.accept(env, "alice", "promoted by plan") == [env.pair.monolith.name]
    assert (await remedy(env)).endswith("--mend")


@pytest.mark.parametrize("side", ["monolith", "service"])
async def test_a_function_behind_the_fences_that_was_replaced_closes_the_write_gate_and_is_made_again(
    env: SwitchEnvironment, work: Work, side: Side
) -> None:
    replace = "AS 'BEGIN RETURN NEW; END'"
    await on(env, side, f"CREATE OR REPLACE FUNCTION cutover.refuse() RETURNS trigger LANGUAGE plpgsql {replace}")
    facts = await gates.measure(env, "service")
    assert any("cutover.refuse" in problem and problem.endswith("--mend") for problem in facts.problems)
    assert (await remedy(env)).endswith("--mend")
    told = f"the function behind the fences at the {side} is this version's again"
    assert told in await mending.mend(env, lambda _: None)
    await in_order(env)


async def test_a_fence_that_is_missing_before_the_first_copy_is_made_and_lets_the_copy_pass(
    env: SwitchEnvironment,
) -> None:
    await catalogs.take(env.control, env.pair, env.plan.hash, by="test")
    await on(env, "service", BARE)
    assert (await remedy(env)).endswith("--mend")
    assert await mending.mend(env, lambda _: None) == ["the fence at the service is shut again"]
    assert await state(env, "service", TRADES) == "fenced"
    await in_order(env)


async def test_an_epoch_row_that_is_gone_is_a_problem_and_preparation_knows_its_beginning_only(
    env: SwitchEnvironment, work: Work
) -> None:
    await on(env, "service", "DELETE FROM cutover.epoch")
    assert await remedy(env) == "cutover start preparation test"
    await env.control.execute("UPDATE control.route SET epoch = 2 WHERE service = $1", env.pair.service)
    await on(env, "monolith", "UPDATE cutover.epoch SET epoch = 2")
    found = await doctor.examine(env.plan, env.pair, env.control)
    assert any("epoch row is missing" in problem for problem in found.problems)
    assert found.remedy == "", "a person has to find out what became of that database"
