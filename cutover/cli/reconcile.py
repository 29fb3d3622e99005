"""`cutover reconcile`: the last reports, new passes where they are too old, repairs, and the history of passes."""

from typing import Annotated

import typer

from cutover.cli import passes, reports
from cutover.cli.connection import control
from cutover.cli.failing import login, plainly, print_json, run
from cutover.cli.repair import Order, repair
from cutover.cli.reports import Chosen
from cutover.control import plans
from cutover.control.database import Control
from cutover.control.reports import history as past_of
from cutover.errors import Exit
from cutover.flags import store as flags
from cutover.plan.fields import canonical
from cutover.plan.models import Plan, near
from cutover.postgres.databases import direction_from
from cutover.settings import Settings
from cutover.telemetry.temporal import connect

#: Differing keys shown of one table; more are counted.
KEYS_SHOWN = 100
REPORTS_SHOWN = 10


@plainly()
def reconcile(
    plan: Annotated[str, typer.Argument(help="The migration's name.")],
    service: Annotated[str, typer.Option(help="Only this service.")] = "",
    table: Annotated[str, typer.Option(help="Only this table.")] = "",
    now: Annotated[bool, typer.Option("--now", help="Compare every chosen table anew, fresh report or not.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Start nothing, however old the last reports are.")] = False,
    repair_: Annotated[
        bool, typer.Option("--repair", help="Mend what the last reports found, by each table's conflict rule.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --repair: only say what would be written.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --repair: do not ask.")] = False,
    by: Annotated[
        str, typer.Option("--by", help="With --repair: who repairs (default: your login).", show_default=False)
    ] = "",
    history: Annotated[bool, typer.Option("--history", help="The last passes of each table.")] = False,
    last: Annotated[int, typer.Option(help="With --history: how many of each table.", min=1)] = REPORTS_SHOWN,
    keys: Annotated[int, typer.Option(help="How many keys of each table are shown; 0: all.", min=0)] = KEYS_SHOWN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how both sides compare, table by table, with the keys that differ.

    A report counts while it is not older than the table's `max_lag` and rows still flow in its direction. Tables
    without such a report are compared first, by the workers, with progress on stderr; `--now` compares all chosen
    tables, `--show` none. Ctrl-C ends the watching, not the pass.

    `--repair` shows what would be written where and why, asks, writes (only to the side that is not the primary, and
    only rows that have not changed since), and compares every repaired key again. It can be stopped and given again.

    Exit status 1 where rows differ or would not settle, a table was never compared, or a pass failed; with `--show`
    also where a report is too old to count, or of the other direction.
    """
    if [now, show, history, repair_].count(True) > 1:
        raise typer.BadParameter("--now, --show, --history and --repair exclude each other")
    if (dry_run or yes or by) and not repair_:
        raise typer.BadParameter("--dry-run, --yes and --by belong to --repair")

    async def work() -> int:
        settings = Settings.from_environment()
        async with control(settings) as opened:
            chosen_plan = await plans.load(opened, plan)
            chosen = await _chosen(opened, chosen_plan, service, table)
            if history:
                return await _history(opened, plan, chosen, last, as_json)
            if repair_:
                order = Order("" if dry_run else login(by), dry_run=dry_run, yes=yes, keys=keys, as_json=as_json)
                return await repair(settings, opened, chosen_plan, chosen, order)
            failed = {} if show else await _compared(settings, opened, plan, chosen, now=now, quiet=as_json)
            found = [await reports.look(opened, plan, one, keys=keys) for one in chosen]
        if as_json:
            print_json([reports.as_json(one) for one in found])
        else:
            reports.show(found)
        for text in failed.values():
            typer.echo(f"error: {text}", err=True)
        # what has just been compared counts, even where its table's max lag is shorter than the command took
        counts = not failed and all(one.in_order and (one.fresh or not show) for one in found)
        return Exit.DONE if counts else Exit.REFUSED

    raise typer.Exit(run(work()))


async def _chosen(opened: Control, plan: Plan, service: str, table: str) -> list[Chosen]:
    """The tables that were asked for. Raises PlanError and BadParameter for a service or table that is not there."""
    names = [service] if service else list(plan.services)
    routes = await flags.all(opened, plan.migration)
    chosen = []
    for name in names:
        direction = direction_from(routes[name].primary_side) if name in routes else "forward"
        for key, rules in plan.service(name).tables.items():
            if not table or canonical(key) == canonical(table):
                chosen.append(Chosen(name, key, direction, rules.reconcile.max_lag.total_seconds()))
    if not chosen:
        known = [key for name in names for key in plan.service(name).tables]
        raise typer.BadParameter(f"no service of {plan.migration} has a table {table!r}; {near(table, known)}")
    return chosen


async def _compared(
    settings: Settings, opened: Control, plan: str, chosen: list[Chosen], *, now: bool, quiet: bool
) -> dict[Chosen, str]:
    """Passes over the tables that need one; those that failed, in words."""
    stale = [one for one in chosen if now or not (await reports.look(opened, plan, one, keys=1)).fresh]
    if not stale:
        return {}
    return await passes.compare(await connect(settings), opened, plan, stale, quiet=quiet)


async def _history(opened: Control, plan: str, chosen: list[Chosen], last: int, as_json: bool) -> int:
    past = [report for one in chosen for report in await past_of(opened, plan, one.service, one.name, limit=last)]
    if as_json:
        print_json([reports.history_json(report) for report in past])
    elif past:
        reports.show_history(past)
    else:
        typer.echo(f"{plan}: nothing was compared yet")
    return Exit.DONE
