"""`cutover fleet`: the applications' running instances, and whether they follow the route of now."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cutover.cli.connection import control
from cutover.cli.failing import plainly, print_json, run
from cutover.cli.texts import cell
from cutover.control import plans
from cutover.errors import Exit
from cutover.flags.fleet import Member, members
from cutover.settings import Settings


@plainly()
def fleet(
    plan: Annotated[str, typer.Argument(help="The migration's name.")],
    service: Annotated[str, typer.Option(help="Only this service.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Who runs which version on which host, at which epoch; exit status 1 where an instance is behind the route."""

    async def work() -> list[Member]:
        async with control(Settings.from_environment()) as opened:
            chosen = await plans.load(opened, plan)
            if service:
                chosen.service(service)
            return await members(opened, plan, service or None)

    found = run(work())
    behind = [member for member in found if member.behind]
    if as_json:
        print_json([_facts(member) for member in found])
    elif not found:
        typer.echo(f"{plan}: no instance has registered (a service does so when it opens its RoutedPool)")
    else:
        _print(found, behind)
    raise typer.Exit(Exit.REFUSED if behind else Exit.DONE)


def _print(found: list[Member], behind: list[Member]) -> None:
    shown = Table("service", "application", "version", "host", "instance", "epoch", "revision", "lease", "seen", "")
    for member in found:
        one = member.instance
        names = (member.service, one.application, one.version or "-", f"{one.host}:{one.pid}", one.id)
        shown.add_row(
            *map(cell, names),
            _followed(member.epoch, member.route_epoch),
            _followed(member.revision, member.route_revision),
            "live" if member.live else f"ran out {_ago(-member.lease_left)} ago",
            f"{_ago(member.seen_ago)} ago",
            "BEHIND" if member.behind else "",
        )
    Console().print(shown)
    for member in behind:
        what = "has not acknowledged the route of now" if member.live else "is gone or cut off: nobody waits for it"
        typer.echo(f"{member.service}: {member.instance.id} on {member.instance.host} {what}")


def _followed(has: int, now: int) -> str:
    return str(has) if has >= now else f"{has} of {now}"


def _ago(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _facts(member: Member) -> dict[str, Any]:
    one = member.instance
    return {
        "service": member.service,
        "instance": one.id,
        "application": one.application,
        "version": one.version,
        "host": one.host,
        "pid": one.pid,
        "epoch": member.epoch,
        "revision": member.revision,
        "route_epoch": member.route_epoch,
        "route_revision": member.route_revision,
        "behind": member.behind,
        "lease": "live" if member.live else "lapsed",
        "lease_left_seconds": round(member.lease_left, 3),
        "seen_seconds_ago": round(member.seen_ago, 3),
        "started_at": member.started_at.isoformat(),
        "pause_acknowledged": member.pause_acked,
    }
