"""Whatever a switch has left where it stopped, `cutover doctor` names one command, and that leads back."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest
from typer.testing import CliRunner

from cutover import doctor, faults
from cutover.cli.main import app
from cutover.control import stages
from cutover.errors import Exit, GateClosed, NotYet
from cutover.flags import store as flags
from cutover.monitor import catalogs
from cutover.plan.dsn import variable
from cutover.postgres import fence, replication
from cutover.postgres.databases import Side, other
from cutover.streams.logical import LogicalStream
from cutover.switch import finish, gates, reverse, section
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.mending import mend
from cutover.switch.steps import SECTION
from tests.switch.conftest import TABLES, Work, order
from tests.switch.test_section import writable
from tests.waiting import until

#: What was done before a step is what the one before it had done; `test_parked` walks through all that is not here.
POINTS = [
    "switch.begin.after",
    *(f"switch.{name}.after" for name in SECTION),
    "switch.done.before",
]
POINTS.insert(POINTS.index("switch.fence.after"), "switch.fence-commit.after")


class Killed(BaseException):
    """Ends an attempt where it is: nothing in the product catches it."""


async def dies(env: SwitchEnvironment, to_side: Side, point: str) -> None:
    """A switch whose process ends at that point."""

    async def die(at: str) -> None:
        if at == point:
            raise Killed

    await reverse.make_ready(env, to_side)
    with faults.armed(die), pytest.raises(Killed):
        await section.run(env, order(env, to_side), lambda _: None)


async def in_order(env: SwitchEnvironment) -> None:
    found = await doctor.examine(env.plan, env.pair, env.control)
    assert found.problems == []
    assert found.remedy == ""


@pytest.mark.slow
async def test_a_switch_that_stopped_anywhere_is_led_back_by_the_doctors_one_command(
    env: SwitchEnvironment, work: Work
) -> None:
    service = env.pair.service
    to_side: Side = "service"
    ended: dict[str, bool] = {}
    for point in POINTS:
        await dies(env, to_side, point)
        found = await doctor.examine(env.plan, env.pair, env.control)
        assert found.remedy == f"cutover doctor test --service {service} --mend", (point, found.problems)
        done = await mend(env, lambda _: None)
        assert len(done) == 1, (point, done)
        await in_order(env)
        assert await mend(env, lambda _: None) == []
        route = await flags.get(env.control, "test", service)
        ended[point] = route.primary_side == to_side
        assert await writable(env, route.primary_side)
        assert not await writable(env, other(route.primary_side))
        if ended[point]:
            await finish.finish(env, order(env, to_side))
            to_side = other(to_side)
    journal = POINTS.index("switch.journal.after")
    assert [ended[point] for point in POINTS] == [number >= journal for number in range(len(POINTS))]


async def test_a_fence_that_somebody_opened_and_a_stream_that_was_dropped_are_put_right(
    env: SwitchEnvironment, work: Work
) -> None:
    async with env.pair.target.session() as connection:
        await connection.execute(fence.open_sql(TABLES))
    await env.stream("forward").drop()
    await env.changed("forward").drop()
    await env.stream("forward").prepare()
    found = await doctor.examine(env.plan, env.pair, env.control)
    assert found.remedy.endswith("--mend")
    said = await mend(env, lambda _: None)
    assert said[:2] == ["the fence at the service is shut again", "the forward stream was lost, and is built anew"]
    assert not await writable(env, "service")
    await in_order(env)


@pytest.mark.parametrize("point", ["mend.lift.before", "mend.lift.after", "mend.fences.before", "mend.fences.after"])
async def test_a_mend_that_was_cut_off_is_done_by_the_next(env: SwitchEnvironment, work: Work, point: str) -> None:
    service = env.pair.service
    await stages.set_stage(env.control, "test", service, "ready")
    await catalogs.take(env.control, env.pair, env.plan.hash, by="test")
    await flags.announce_pause(env.control, "test", service, "left", timedelta(seconds=1))
    async with env.pair.target.session() as connection:
        await connection.execute(fence.open_sql(TABLES))

    async def die(at: str) -> None:
        if at == point:
            raise Killed

    with faults.armed(die), pytest.raises(Killed):
        await mend(env, lambda _: None)
    await mend(env, lambda _: None)
    await in_order(env)
    assert (await flags.get(env.control, "test", service)).pause_id is None
    assert not await writable(env, "service")


async def test_a_forward_stream_that_is_missing_once_the_copy_is_done_is_a_problem_and_built_anew(
    env: SwitchEnvironment,
) -> None:
    await catalogs.take(env.control, env.pair, env.plan.hash, by="test")
    await env.stream("forward").drop()
    assert "missing" not in " ".join((await doctor.examine(env.plan, env.pair, env.control)).problems)
    assert await mend(env, lambda _: None) == []
    await stages.set_stage(env.control, "test", env.pair.service, "ready")
    found = await doctor.examine(env.plan, env.pair, env.control)
    assert found.problems == ["the forward stream is missing: the service's database falls behind"]
    assert found.remedy.endswith("--mend")
    assert await mend(env, lambda _: None)
    await in_order(env)


@pytest.mark.parametrize("torn", [False, True])
async def test_a_lost_record_of_changed_keys_is_made_anew_and_every_row_compared(
    env: SwitchEnvironment, work: Work, torn: bool
) -> None:
    """Its slot is gone, or torn: its publication was made anew, and no record has what was written meanwhile."""
    changed = env.changed("forward")
    async with env.pair.monolith.session() as source:
        if torn:
            await source.execute(f"DROP PUBLICATION {changed.publication}")
            await env.stream("forward").prepare()
        else:
            await source.execute("SELECT pg_drop_replication_slot($1)", changed.slot)
    await reverse.make_ready(env, "service")
    with pytest.raises(GateClosed):
        await section.run(env, order(env, "service"), lambda _: None)
    found = await doctor.examine(env.plan, env.pair, env.control)
    assert "the record of keys changed" in " ".join(found.problems)
    assert found.remedy.endswith("--mend")
    assert any("made anew" in line for line in await mend(env, lambda _: None))
    assert (await doctor.examine(env.plan, env.pair, env.control)).problems == []
    assert (await section.run(env, order(env, "service"), lambda _: None)).result == "done"


@pytest.mark.parametrize("point", ["rebuild.drop.after", "rebuild.make.after", "rebuild.stand.before"])
async def test_a_rebuild_that_was_cut_off_is_done_by_the_next_mend(env: SwitchEnvironment, point: str) -> None:
    """There is no stream by then; or the new one runs, and what the lost one did not carry is still missing."""
    await catalogs.take(env.control, env.pair, env.plan.hash, by="test")
    stream = env.stream("forward")
    assert isinstance(stream, LogicalStream)
    await stream.stop()
    async with env.pair.monolith.session() as source:
        await until(lambda: dropped(source, stream.subscription), "the slot is gone")
        await source.execute("INSERT INTO trades (price, note) SELECT i, 'missed' FROM generate_series(1, 50) i")

    async def die(at: str) -> None:
        if at == point:
            raise Killed

    with faults.armed(die), pytest.raises(Killed):
        await mend(env, lambda _: None)
    found = await doctor.examine(env.plan, env.pair, env.control)
    assert found.remedy.endswith("--mend"), found
    problems = (await gates.measure(env, "service")).problems
    assert any("rebuild of the forward stream" in one for one in problems), problems
    assert await mend(env, lambda _: None)
    await in_order(env)
    async with env.pair.monolith.session() as one, env.pair.target.session() as two:
        query = "SELECT (SELECT jsonb_agg(t ORDER BY id) FROM trades t)::text"
        assert await one.fetchval(query) == await two.fetchval(query)


async def dropped(source: asyncpg.Connection, slot: str) -> bool:
    try:
        await replication.drop_slot(source, slot)
    except NotYet:
        return False
    return True


async def test_the_command_tells_what_it_found_asks_and_mends(
    env: SwitchEnvironment, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = env.pair.service
    await dies(env, "service", "switch.fence.after")
    databases = (env.pair.monolith, env.pair.target, env.control.database)
    for name, database in zip(("monolith", env.service.database, "control"), databases, strict=True):
        monkeypatch.setenv(variable(name), database.dsn)

    def typed(*arguments: str, answer: str = "") -> tuple[int, str]:
        result = CliRunner().invoke(app, ["doctor", "test", *arguments], input=answer)
        return result.exit_code, result.output

    status, said = await asyncio.to_thread(typed, "--service", service, "--mend", answer="n\n")
    assert status == Exit.REFUSED, said
    assert "a switch is fenced" in said
    assert not await writable(env, "monolith")
    status, said = await asyncio.to_thread(typed, "--service", service, "--mend", "--yes")
    assert "the switch to the service is undone" in said
    assert await writable(env, "monolith")
    status, said = await asyncio.to_thread(typed, "--service", service, "--mend", answer="n\n")
    assert status == Exit.REFUSED, "it asks though nothing is wrong: by then something may be"
    assert "in order" in said
    assert (await asyncio.to_thread(typed, "--mend"))[0] == Exit.WRONG_INPUT
