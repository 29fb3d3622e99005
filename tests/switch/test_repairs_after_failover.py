"""No repair on a server that nobody has accepted: what it has lost may have its last copy at the other side."""

import asyncio
import json
from dataclasses import replace

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from activities import models as m
from cutover.cli.main import app
from cutover.control import conflicts, identity, reports
from cutover.errors import AnotherServer, Exit
from cutover.pairs import pair
from cutover.plan.models import Table
from cutover.postgres import catalog
from cutover.postgres.applier import applier_session
from cutover.postgres.databases import Side
from cutover.reconcile.conflicts import resolve
from cutover.streams.base import settling
from cutover.switch import servers
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import Work, verify
from tests.switch.test_cases import reconcile
from tests.switch.test_fences import TRADES

LAST_COPY = "INSERT INTO trades (id, price, note) OVERRIDING SYSTEM VALUE VALUES (900, 1, 'acknowledged')"


def by_plan(env: SwitchEnvironment, work: Work) -> SwitchEnvironment:
    """The environment as a worker opens it: with the plan's names of the databases."""
    return replace(env, pair=pair(env.plan, env.pair.service, work.context.settings.database))


async def another_server(env: SwitchEnvironment, side: Side) -> None:
    """As if a standby of that side had been promoted: the timeline of now is not the one that was noted."""
    assert await servers.changed(env) == []
    await env.control.execute(
        "UPDATE control.server_identity SET timeline = timeline - 1 WHERE migration = 'test' AND database = $1",
        env.pair.at(side).name,
    )


async def lost(env: SwitchEnvironment) -> None:
    """Rows whose last copies are at the other side, as a promoted standby of the primary leaves them; a pass has them.

    One is gone at the primary, one is older there, and one came back there.
    """
    async with applier_session(env.pair.target, env.pair.service, "repair") as writer:
        for statement in (
            LAST_COPY,
            "UPDATE trades SET note = 'acknowledged' WHERE id = 7",
            "DELETE FROM trades WHERE id = 8",
        ):
            await writer.execute(statement)
    await verify(env)


async def other_side(env: SwitchEnvironment) -> list[str]:
    async with env.pair.target.session() as connection:
        return [row[0] for row in await connection.fetch("SELECT t::text FROM trades t ORDER BY id")]


async def as_typed(work: Work, *options: str) -> Result:
    arguments = ["reconcile", "test", "--repair", "--service", str(work.ref.service), "--table", "trades", *options]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=dict(work.context.settings.values))


@pytest.mark.parametrize("side", ["monolith", "service"])
async def test_a_schedules_repair_writes_nothing_tells_the_remedy_and_works_again_once_the_server_is_accepted(
    env: SwitchEnvironment, work: Work, side: Side
) -> None:
    await lost(env)
    env = by_plan(env, work)
    await another_server(env, side)
    before = await other_side(env)
    found, resolved = await reconcile(env, env.plan.hash)
    assert await other_side(env) == before
    assert (found, resolved.repaired, resolved.cases) == (3, 0, 0)
    assert resolved.refused.endswith(f"{identity.remedy(env.pair)}; what is to be done next the doctor says")
    (told,) = await work.alerts("failover")
    assert (told.severity, told.service) == ("critical", env.pair.service)
    assert identity.remedy(env.pair) in told.text
    assert len(await reports.open_differences(env.control, "test", env.pair.service, "trades")) == 3
    audited = [row["action"] for row in await env.control.fetch("SELECT action FROM control.audit")]
    assert "repair.begun" not in audited
    assert (await reconcile(env, env.plan.hash))[0] == 3, "passes go on"

    assert await servers.accept(env, "alice", "nothing is missing there") == [env.pair.at(side).name]
    assert (await reconcile(env, env.plan.hash))[1] == m.Resolved(repaired=3)
    assert (await reconcile(env, env.plan.hash))[0] == 0


async def test_a_repair_that_a_person_types_writes_nothing_says_the_remedy_and_works_again_once_it_is_accepted(
    env: SwitchEnvironment, work: Work
) -> None:
    await lost(env)
    await another_server(env, "monolith")
    before = await other_side(env)
    looked = await as_typed(work, "--dry-run")
    assert (looked.exit_code, await work.alerts("failover")) == (Exit.REFUSED, [])
    said = await as_typed(work, "--yes")
    for one in (looked, said):
        assert identity.remedy(env.pair) in " ".join(one.stderr.split())
        assert "nothing to repair" not in one.stdout
    assert (said.exit_code, await other_side(env)) == (Exit.REFUSED, before)
    assert len(await work.alerts("failover")) == 1

    await servers.accept(env, "alice", "nothing is missing there")
    await verify(env)
    done = await as_typed(work, "--yes", "--json")
    assert (done.exit_code, json.loads(done.stdout)["tables"][0]["outcomes"]) == (Exit.DONE, {"repaired": 3})


async def test_what_a_person_decided_about_a_case_is_not_applied_and_no_case_is_opened(
    env: SwitchEnvironment, work: Work
) -> None:
    await lost(env)
    manual = Table(conflict="manual")
    settle = settling(env.stream("forward"), 20)

    async def found() -> list[reports.Difference]:
        return await reports.open_differences(env.control, "test", env.pair.service, "trades")

    (first, *others) = await found()
    assert (await resolve(env.pair, "forward", TRADES, manual, [first], env.control, settle)).cases == 1
    (case,) = await conflicts.list_open(env.control, "test")
    await conflicts.decide(env.control, "test", case.id, "alice", "primary", "as it seemed before")
    await another_server(env, "monolith")
    before = await other_side(env)
    for differences in ([first], others):
        with pytest.raises(AnotherServer):
            await resolve(env.pair, "forward", TRADES, manual, differences, env.control, settle)
    assert await other_side(env) == before
    assert [one.id for one in await conflicts.list_open(env.control, "test")] == [case.id]


@pytest.mark.parametrize("kind", ["missing", "extra", "mismatched"])
async def test_a_standby_that_is_promoted_in_the_middle_of_a_repair_is_noticed_before_its_write(
    env: SwitchEnvironment, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session to the source may be of a standby's that takes over under it."""
    await lost(env)
    await another_server(env, "monolith")
    await env.control.execute("UPDATE control.server_identity SET timeline = timeline + 1 WHERE timeline = 0")
    found = await reports.open_differences(env.control, "test", env.pair.service, "trades")
    before = await other_side(env)
    real = catalog.server_identity
    looks = 0

    async def promoted_behind_the_first_look(session: asyncpg.Connection) -> identity.Identity:
        nonlocal looks
        system, timeline = await real(session)
        looks += 1
        return system, timeline + (looks > 2)

    monkeypatch.setattr(catalog, "server_identity", promoted_behind_the_first_look)
    chosen = [one for one in found if one.kind == kind]
    assert len(chosen) == 1
    with pytest.raises(AnotherServer, match="timeline"):
        await resolve(env.pair, "forward", TRADES, Table(), chosen, env.control, settling(env.stream("forward"), 20))
    assert await other_side(env) == before
