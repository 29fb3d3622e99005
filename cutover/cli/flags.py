"""`cutover flags`: list them, set one, serve them to services in other languages."""

import asyncio
import ipaddress
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cutover.cli.connection import control
from cutover.cli.failing import login, plainly, print_json, run
from cutover.cli.texts import cell, moment
from cutover.control import plans
from cutover.control.database import Control
from cutover.errors import ConfigError, NotYet, Refused
from cutover.flags import by_hand, store
from cutover.flags.follower import Flag, Follower, flags_of
from cutover.flags.instances import Acks, await_acknowledged
from cutover.flags.store import Route
from cutover.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Where services read and write: list the flags, set one, serve them.")

Plan = Annotated[str, typer.Argument(help="The migration's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: The bearer token (or API key) that `serve` asks for.
TOKEN = "CUTOVER_FLAGS_TOKEN"
PORT = 8016
#: For how long `set` waits until every live instance follows the change.
ACKNOWLEDGE = timedelta(seconds=10)


@app.command("list")
@plainly()
def list_flags(
    plan: Plan, service: Annotated[str, typer.Option(help="Only this service.")] = "", as_json: Json = False
) -> None:
    """The flags of a migration and their values of now."""

    async def work() -> dict[str, Route]:
        async with control(Settings.from_environment()) as opened:
            chosen = await plans.load(opened, plan)
            if service:
                chosen.service(service)
            return await store.all(opened, plan)

    routes = {name: route for name, route in run(work()).items() if service in ("", name)}
    flags = list(flags_of(routes).values())
    if as_json:
        print_json([_facts(flag) for flag in flags])
        return
    if not flags:
        typer.echo(f"{plan}: no flags yet; Preparation makes them")
        return
    shown = Table("flag", "value", "service", "epoch", "revision", "changed")
    for flag in flags:
        names = (flag.name, _value(flag), flag.service, str(flag.epoch), str(flag.revision), moment(flag.changed_at))
        shown.add_row(*map(cell, names))
    Console().print(shown)
    for route in routes.values():
        if route.paused:
            typer.echo(f"{route.service}: pause {route.pause_id} is announced, for at most {route.pause_limit_ms} ms")


@app.command("set")
@plainly()
def set_flag(
    plan: Plan,
    flag: Annotated[str, typer.Argument(metavar="FLAG", help="As `cutover flags list` names it.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="true or false; a percentage: 0 to 100.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.", show_default=False)],
    by: Annotated[str, typer.Option("--by", help="Who sets it (default: your login).", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """Move stale_ok reads: fewer to the new side at any time, more on fresh evidence. Writes move in a switch only."""
    person = login(by)
    try:
        service, _, _ = by_hand.parse(flag, value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not reason.strip():
        raise typer.BadParameter("say why: it is kept in the audit log", param_hint="--reason")

    async def work() -> tuple[Route, bool, Acks]:
        async with control(Settings.from_environment()) as opened:
            route, changed = await by_hand.change(opened, plan, flag, value, by=person, reason=reason)
            try:
                acks = await await_acknowledged(opened, plan, service, revision=route.revision, timeout=ACKNOWLEDGE)
            except NotYet as error:
                raise NotYet(f"{flag} is {value} now, but not everywhere yet: {error}") from None
            return route, changed, acks

    route, changed, acks = run(work())
    flags = flags_of({service: route})
    if as_json:
        facts = {"changed": changed, "by": person, "acknowledged": acks.acked, "lapsed": acks.lapsed}
        print_json({**facts, "flags": [_facts(one) for one in flags.values()]})
        return
    typer.echo(f"{flag} is {_value(flags[flag])}{f', as {person}' if changed else ' already; nothing was changed'}")
    typer.echo(f"followed by {acks.acked} instance(s); the lease of {acks.lapsed} ran out instead")


@app.command()
@plainly()
def serve(
    plan: Annotated[str, typer.Argument(help="The migration's name; not needed where there is one only.")] = "",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = PORT,
) -> None:
    """Serve the flags over OFREP, to OpenFeature providers in every language, until SIGTERM or Ctrl-C."""
    run(_serve(plan, host, port))


async def _serve(plan: str, host: str, port: int) -> None:
    try:
        from cutover.flags import ofrep, serving
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing: pip install '.[flags-server]' in cutover's checkout") from None
    settings = Settings.from_environment()
    token = settings.get(TOKEN)
    with serving.bound(host, port) as listening:
        async with control(settings) as opened:
            follower = Follower(opened, await _migration(opened, plan))
            await follower.load()

            def ready() -> None:
                at, taken = listening.getsockname()[:2]
                shown = f"[{at}]" if ":" in at else at
                typer.echo(f"{follower.migration}: OFREP at http://{shown}:{taken} (health: /healthz); Ctrl-C ends it")
                if not token and not _loopback(at):
                    typer.echo(f"warning: anybody who reaches {host} can read the flags; set {TOKEN}", err=True)

            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(follower.run(), name="cutover-flags")
                await serving.serve(ofrep.application(follower, token=token), listening, ready=ready)
                following.cancel()


async def _migration(opened: Control, plan: str) -> str:
    """The migration to serve. Raises Refused where it is not known, or not plain which one is meant."""
    if plan:
        await plans.load(opened, plan)
        return plan
    known = await store.migrations(opened)
    if len(known) == 1:
        return known[0]
    if not known:
        raise Refused("no migration has flags yet; name one, and its flags are served once Preparation has made them")
    raise Refused(f"several migrations have flags ({', '.join(known)}): cutover flags serve NAME")


def _loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _value(flag: Flag) -> str:
    return f"{flag.value} %" if not isinstance(flag.value, bool) else str(flag.value).lower()


def _facts(flag: Flag) -> dict[str, Any]:
    return {
        "flag": flag.name,
        "value": flag.value,
        "service": flag.service,
        "epoch": flag.epoch,
        "revision": flag.revision,
        "changed_at": flag.changed_at.isoformat(),
    }
