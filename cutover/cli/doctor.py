"""`cutover doctor`: what is true, and the few things that mend it."""

import asyncio
from typing import Annotated

import typer

from cutover import faults
from cutover.cli.connection import control
from cutover.cli.failing import login, plainly, print_json, run
from cutover.control import plans
from cutover.doctor import examine
from cutover.errors import Exit
from cutover.flags import store as flags
from cutover.monitor import catalogs
from cutover.pairs import pair
from cutover.postgres.databases import other
from cutover.settings import Settings
from cutover.switch import mending, servers
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.rebuild import rebuild
from cutover.switch.steps import STEPS

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@plainly()
def doctor(
    plan: Annotated[str, typer.Argument(help="The migration's name.", show_default=False)] = "",
    service: Annotated[str, typer.Option(help="Only this service.")] = "",
    steps: Annotated[bool, typer.Option("--steps", help="List the steps of a switch (a dry run) and end.")] = False,
    fault_points: Annotated[
        bool, typer.Option("--fault-points", help="List the points at which tests make each step fail, and end.")
    ] = False,
    rebuild_stream: Annotated[
        bool, typer.Option("--rebuild-stream", help="Build the service's lost stream anew and mend what it missed.")
    ] = False,
    mend: Annotated[
        bool,
        typer.Option(
            "--mend",
            help="End a switch that stopped, lift a pause that was left, set the fences by the flags, start a stopped "
            "stream and build a lost one anew: the way back to a good state, without a worker.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --mend or --rebuild-stream.")] = False,
    accept_ddl: Annotated[
        bool, typer.Option("--accept-ddl", help="Take the service's schema as it is now, both sides being alike.")
    ] = False,
    accept_server: Annotated[
        bool,
        typer.Option("--accept-server", help="After a failover: the servers of now are the right ones."),
    ] = False,
    by: Annotated[str, typer.Option("--by", help="Who accepts (default: your login).", show_default=False)] = "",
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the audit log.")] = "",
    as_json: Json = False,
) -> None:
    """Look at fences, streams, switches and gates of every service, and say what to do.

    Changes nothing, but with --mend, --rebuild-stream, --accept-ddl and --accept-server. Exit status 1 where something
    is not in order.
    """
    if steps:
        if as_json:
            print_json([vars(step) for step in STEPS])
        else:
            for number, step in enumerate(STEPS, 1):
                undo = f"   undo: {step.undo}" if step.undo else ""
                typer.echo(f"{number:>2}. {step.name:<15} {step.does}{undo}")
        return
    if fault_points:
        if as_json:
            print_json([{"point": point, "step": faults.STEPS[point.rpartition(".")[0]]} for point in faults.points()])
        else:
            for name, does in faults.STEPS.items():
                typer.echo(f"{name + '.before':<28} {name + '.after':<28} {does}")
        return
    if not plan:
        raise typer.BadParameter("name the migration: cutover doctor MIGRATION", param_hint="PLAN")

    if rebuild_stream:
        run(_rebuild(plan, service, yes, as_json))
        return

    if mend:
        raise typer.Exit(run(_mend(plan, service, yes, as_json)))

    if accept_ddl or accept_server:
        run((_accept_ddl if accept_ddl else _accept_server)(plan, service, login(by), reason))
        return

    async def work() -> int:
        settings = Settings.from_environment()
        async with control(settings) as opened:
            chosen = await plans.load(opened, plan)
            names = [service] if service else list(chosen.services)
            found = await asyncio.gather(
                *(examine(chosen, pair(chosen, name, settings.database), opened) for name in names)
            )
        if as_json:
            print_json([one.as_json() for one in found])
        else:
            for one in found:
                typer.echo(str(one))
        return Exit.REFUSED if any(one.problems for one in found) else Exit.DONE

    raise typer.Exit(run(work()))


async def _mend(plan: str, service: str, yes: bool, as_json: bool) -> int:
    if not service:
        raise typer.BadParameter("--mend needs --service")
    settings = Settings.from_environment()
    async with control(settings) as opened:
        chosen = await plans.load(opened, plan)
        env = SwitchEnvironment(chosen, pair(chosen, service, settings.database), opened)
        before = await examine(chosen, env.pair, opened)
        if not yes:  # it does what it finds by itself, whatever was seen here
            typer.echo(str(before), err=as_json)
            typer.confirm(
                "Ends a switch that stopped, lifts its pause, sets the fences by the flags, starts its stream or "
                "builds it anew. Go on?", abort=True, err=True,
            )  # fmt: skip
        done = await mending.mend(env, lambda text: typer.echo(f"  {text}", err=as_json))
        after = await examine(chosen, env.pair, opened)
    if as_json:
        print_json({"done": done, **after.as_json()})
    else:
        typer.echo(str(after))
    return Exit.REFUSED if after.problems else Exit.DONE


async def _accept_server(plan: str, service: str, by: str, reason: str) -> None:
    if not service or not reason.strip():
        raise typer.BadParameter("--accept-server needs --service and --reason")
    settings = Settings.from_environment()
    async with control(settings) as opened:
        chosen = await plans.load(opened, plan)
        env = SwitchEnvironment(chosen, pair(chosen, service, settings.database), opened)
        accepted = await servers.accept(env, by, reason)
    if not accepted:
        typer.echo(f"{service}: its servers are the ones that are noted; nothing had changed")
        return
    typer.echo(f"{service}: {' and '.join(accepted)} noted as of now, accepted by {by}; every table needs a new pass")


async def _accept_ddl(plan: str, service: str, by: str, reason: str) -> None:
    if not service or not reason.strip():
        raise typer.BadParameter("--accept-ddl needs --service and --reason")
    settings = Settings.from_environment()
    async with control(settings) as opened:
        record = await plans.record(opened, plan)
        chosen = await plans.load(opened, plan, record.hash)
        changed = await catalogs.accept(
            opened, pair(chosen, service, settings.database), record.hash, by=by, reason=reason
        )
    for one in changed or ["nothing had changed"]:
        typer.echo(f"  {one}")
    typer.echo(f"{service}: its schema of now is what gates compare with, accepted by {by}")


async def _rebuild(plan: str, service: str, yes: bool, as_json: bool) -> None:
    if not service:
        raise typer.BadParameter("--rebuild-stream needs --service")
    settings = Settings.from_environment()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        typer.echo(text, err=as_json)

    async with control(settings) as opened:
        chosen = await plans.load(opened, plan)
        env = SwitchEnvironment(chosen, pair(chosen, service, settings.database), opened)
        route = await flags.get(opened, plan, service)
        other_side = other(route.primary_side)
        typer.echo(
            f"{service} is writable at the {route.primary_side}. Its stream to the {other_side} is dropped and made "
            f"anew; then every row is compared, and the {other_side}'s rows are made like the {route.primary_side}'s.",
            err=as_json,
        )
        if not yes:
            typer.confirm("Go on?", abort=True, err=True)
        await rebuild(env, say)
    if as_json:
        print_json({"service": service, "from": route.primary_side, "to": other_side, "rebuilt": True, "steps": said})
    else:
        typer.echo(f"{service}: the stream is whole again")
