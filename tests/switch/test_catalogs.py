"""A schema that somebody changes closes every gate, and opens it again once a person has accepted the change."""

import asyncio

import typer
from typer.testing import CliRunner

from activities import models as m
from activities.preparation import PreparationActivities
from activities.reconciliation import ReconciliationActivities
from activities.replication import ReplicationActivities
from activities.switching import SwitchActivities
from cutover.cli.doctor import doctor
from cutover.control import audit, fingerprints, stages
from cutover.monitor import catalogs
from cutover.postgres.databases import Side
from cutover.switch import finish, reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.passing import make_pass
from tests.switch.conftest import TABLES, Work, order

ADD = "ALTER TABLE trades ADD COLUMN venue text DEFAULT 'hidden-default' CHECK (venue <> 'hidden-check')"


async def on(env: SwitchEnvironment, side: Side, *statements: str) -> None:
    async with env.pair.at(side).session() as connection:
        for statement in statements:
            await connection.execute(statement)


async def gate_problems(work: Work) -> dict[str, list[str]]:
    """What each measured gate of a service says."""
    replication, switch = ReplicationActivities(work.context), SwitchActivities(work.context)
    found = {}
    for name, activity in (
        ("ready", replication.measure_ready),
        ("read", switch.measure_read),
        ("write", switch.measure_write),
    ):
        evidence: m.GateEvidence = await work.run(activity, m.GateRequest(ref=work.ref, gate=name))
        # no soak was watched here, as the write gate asks for besides
        found[name] = [one for one in evidence.problems if not one.startswith("Monitor error rates")]
    return found


def cli(env: SwitchEnvironment, work: Work) -> typer.Typer:
    app = typer.Typer()
    app.command()(doctor)
    return app


async def accept(env: SwitchEnvironment, work: Work, *more: str) -> tuple[int, str]:
    """`cutover doctor --accept-ddl`, as a person types it."""
    arguments = ["test", "--service", env.pair.service, "--accept-ddl", *more]
    # the command runs its own event loop
    result = await asyncio.to_thread(
        CliRunner().invoke, cli(env, work), arguments, env=dict(work.context.settings.values)
    )
    return result.exit_code, result.output


async def test_a_column_at_one_side_alone_closes_every_gate_until_made_alike_and_accepted(
    env: SwitchEnvironment, work: Work
) -> None:
    assert await gate_problems(work) == {"ready": [], "read": [], "write": []}
    assert await work.alerts("ddl") == []
    await on(env, "monolith", ADD)
    for problems in (await gate_problems(work)).values():
        assert any("column public.trades.venue was added at the monolith" in problem for problem in problems), problems
    (alert,) = await work.alerts("ddl")
    assert alert.severity == "critical"
    assert "column public.trades.venue was added at the monolith" in alert.text
    assert "--accept-ddl" in alert.text
    status, said = await accept(env, work, "--by", "alice", "--reason", "venue for the new exchange")
    assert status != 0
    assert "differ" in said

    await on(env, "service", ADD)
    assert all((await gate_problems(work)).values()), "made alike is not accepted yet"
    status, said = await accept(env, work, "--by", "alice", "--reason", "venue for the new exchange")
    assert status == 0, said
    assert await gate_problems(work) == {"ready": [], "read": [], "write": []}
    async with env.control.connection() as connection:
        rows = await audit.entries(connection, "test")
        assert await audit.verify(connection) == []
        kept = await connection.fetchval("SELECT string_agg(items::text, ' ') FROM control.fingerprint")
    (accepted,) = [row for row in rows if row.action == "catalogs.accepted"]
    assert accepted.actor == "alice"
    assert accepted.detail["reason"] == "venue for the new exchange"
    assert "column public.trades.venue was added at the monolith" in accepted.detail["changes"]
    told = " ".join([kept, alert.text, *(str(row.detail) for row in rows)])
    assert "hidden" not in told


async def test_accepting_asks_for_a_service_and_a_reason(env: SwitchEnvironment, work: Work) -> None:
    status, said = await accept(env, work, "--by", "alice")
    assert status == 2
    assert "--reason" in said


async def test_every_pass_tells_of_a_changed_schema(env: SwitchEnvironment, work: Work) -> None:
    reconciliation = ReconciliationActivities(work.context)
    await make_pass(work.run, reconciliation, work.ref, "positions")
    assert await work.alerts("ddl") == []
    await on(env, "monolith", "CREATE INDEX trades_note ON trades (note)")
    await make_pass(work.run, reconciliation, work.ref, "positions")
    (alert,) = await work.alerts("ddl")
    assert "index public.trades.trades_note was added at the monolith" in alert.text


async def test_catalogs_that_were_never_taken_close_the_gates(env: SwitchEnvironment, work: Work) -> None:
    await env.control.execute("DELETE FROM control.fingerprint WHERE side = 'service'")
    for problems in (await gate_problems(work)).values():
        assert any("never taken" in problem for problem in problems)


async def test_preparation_run_again_accepts_nothing(env: SwitchEnvironment, work: Work) -> None:
    await on(env, "monolith", ADD)
    await on(env, "service", ADD)
    await work.run(PreparationActivities(work.context).take_fingerprints)
    assert (await catalogs.drift(env.control, env.pair)).changed
    other = await catalogs.take(env.control, env.pair, "0" * 64, by="preparation")
    assert not (await catalogs.drift(env.control, env.pair)).changed, "another plan takes them anew"
    taken = await fingerprints.find(env.control, "test", env.pair.service)
    assert taken is not None
    assert taken.digests["monolith"] == other["monolith"].digests


async def test_what_cutover_does_itself_is_no_change(env: SwitchEnvironment, work: Work) -> None:
    await on(
        env,
        "monolith",
        "CREATE TABLE users (id bigint PRIMARY KEY)",
        "ALTER TABLE trades ADD COLUMN user_id bigint CONSTRAINT trades_user REFERENCES users",
    )
    await on(env, "service", "ALTER TABLE trades ADD COLUMN user_id bigint")
    await catalogs.accept(env.control, env.pair, env.plan.hash, by="test", reason="the test's schema")
    await on(env, "monolith", "ALTER TABLE trades DROP CONSTRAINT trades_user")  # as DETACH_KEYS does
    for to_side in ("service", "monolith"):
        await reverse.make_ready(env, to_side)
        request = order(env, to_side)
        assert (await section.run(env, request, lambda _: None)).result == "done"
        assert (await catalogs.drift(env.control, env.pair)).changed == []
        await finish.finish(env, request)
        assert (await catalogs.drift(env.control, env.pair)).changed == []
    await on(env, "monolith", *(f"ALTER TABLE {table.sql} RENAME TO {table.name}_retired" for table in TABLES))
    assert (await catalogs.drift(env.control, env.pair)).changed
    await stages.set_stage(env.control, "test", env.pair.service, "archived")
    assert (await catalogs.drift(env.control, env.pair)).changed == []
