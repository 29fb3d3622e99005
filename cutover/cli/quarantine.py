"""`cutover quarantine`: keys whose changes the other side of an outbox stream refuses, and what people decide."""

from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from cutover.cli.connection import control
from cutover.cli.failing import login, plainly, print_json, run
from cutover.cli.texts import cell, moment
from cutover.control import audit, plans
from cutover.control.audit import Entry
from cutover.control.database import Control
from cutover.errors import Refused
from cutover.flags import store as flags
from cutover.pairs import pair
from cutover.plan.models import Plan as PlanModel
from cutover.postgres.databases import direction_from
from cutover.postgres.outbox_quarantine import Held
from cutover.settings import Settings
from cutover.streams import open_stream
from cutover.streams.outbox import OutboxStream

app = typer.Typer(no_args_is_help=True, help="Keys that the other side of an outbox stream refuses: look, decide.")

Plan = Annotated[str, typer.Argument(help="The migration's name.")]
Service = Annotated[str, typer.Argument(help="The service.")]
Ids = Annotated[list[int], typer.Argument(metavar="NUMBER...", help="Numbers, as `quarantine list` shows them.")]
By = Annotated[str, typer.Option("--by", help="Who decides (default: your login).", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept beside the key and in the audit log.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
@plainly()
def list_held(
    plan: Plan,
    service: Annotated[str, typer.Option(help="Only this service.")] = "",
    as_json: Json = False,
) -> None:
    """What is held back, oldest first: the key, why the other side refuses it, and how much waits behind it."""

    async def work() -> list[tuple[str, Held]]:
        settings = Settings.from_environment()
        async with control(settings) as opened:
            chosen = await plans.load(opened, plan)
            names = [service] if service else [s for s, rules in chosen.services.items() if rules.stream == "outbox"]
            return [
                (name, one) for name in names for one in await (await _stream(opened, settings, chosen, name)).held()
            ]

    found = run(work())
    if as_json:
        print_json([_facts(name, one) for name, one in found])
        return
    if not found:
        typer.echo(f"{plan}: nothing is held in quarantine")
        return
    shown = Table("number", "service", "table", "key", "refused because of", "since", "changes waiting")
    for name, one in found:
        cells = (name, one.table, ", ".join(one.key), f"{one.reason} ({one.sqlstate})", moment(one.since))
        shown.add_row(str(one.id), *map(cell, cells), str(one.waiting))
    Console().print(shown)
    name, one = found[0]
    typer.echo(
        f"mend the cause, then: cutover quarantine retry {plan} {name} {one.id} --reason WHY\n"
        f"or give the changes up, and let reconciliation show the difference: "
        f"cutover quarantine skip {plan} {name} {one.id} --reason WHY"
    )


@app.command()
@plainly()
def retry(plan: Plan, service: Service, ids: Ids, reason: Reason, by: By = "") -> None:
    """Let the relays try these keys again, as they are by now."""
    person = login(by)
    _decide(plan, service, ids, person, reason, "retry")
    typer.echo(f"{service}: {len(ids)} of the held keys are tried again; cutover quarantine list {plan} shows the rest")


@app.command()
@plainly()
def skip(plan: Plan, service: Service, ids: Ids, reason: Reason, by: By = "") -> None:
    """Give up what these keys wait for. The two sides differ in them until their next change, or a repair."""
    person = login(by)
    gone = _decide(plan, service, ids, person, reason, "skip")
    typer.echo(
        f"{service}: {gone} changes of {len(ids)} keys were given up\n"
        f"the difference shows in the next pass: cutover reconcile {plan} --service {service} --now"
    )


def _decide(plan: str, service: str, ids: list[int], by: str, reason: str, action: Literal["retry", "skip"]) -> int:
    """How many changes were given up."""

    async def work() -> int:
        settings = Settings.from_environment()
        async with control(settings) as opened:
            chosen = await plans.load(opened, plan)
            stream = await _stream(opened, settings, chosen, service)
            # told before the deed: one that is not recorded must not happen
            async with opened.transaction() as connection:
                entry = Entry(by, f"quarantine.{action}", plan, service, {"numbers": ids, "reason": reason})
                await audit.append(connection, entry)
            if action == "skip":
                return await stream.skip(ids, by=by, why=reason)
            await stream.retry(ids, by=by, why=reason)
            return 0

    return run(work())


async def _stream(opened: Control, settings: Settings, plan: PlanModel, service: str) -> OutboxStream:
    """The stream in the direction of now. Raises Refused for a service that has no quarantine."""
    both = pair(plan, service, settings.database)
    route = await flags.get(opened, plan.migration, service)
    stream = open_stream(both, direction_from(route.primary_side), plan.service(service))
    if not isinstance(stream, OutboxStream):
        raise Refused(f"{service}: its stream is {plan.service(service).stream!r}; only an outbox has a quarantine")
    return stream


def _facts(service: str, one: Held) -> dict[str, Any]:
    return {
        "number": one.id,
        "service": service,
        "table": one.table,
        "key": list(one.key),
        "sqlstate": one.sqlstate,
        "reason": one.reason,
        "since": one.since.isoformat(),
        "waiting": one.waiting,
    }
