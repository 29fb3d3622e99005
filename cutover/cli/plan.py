"""`cutover plan`: check a plan file, show it with every default filled in, register it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cutover.cli.connection import control as connected
from cutover.cli.failing import login, plainly, print_json, run
from cutover.control import plans
from cutover.control.database import Control
from cutover.errors import Exit, Refused
from cutover.plan.explain import Change, changes
from cutover.plan.explain import explain as explain_plan
from cutover.plan.load import Finding, examine_file
from cutover.plan.models import Plan
from cutover.plan.notes import TRAFFIC, notes
from cutover.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Check, explain and register the plan of a migration.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="The plan, a YAML file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
@plainly()
def check(
    file: File,
    as_json: Json = False,
    no_dsn: Annotated[bool, typer.Option("--no-dsn", help="Do not look for the databases' DSNs.")] = False,
) -> None:
    """List every problem of a plan file, with its line. Exit status 0: none; 2: at least one."""
    settings = Settings.from_environment()
    plan, findings = examine_file(file, None if no_dsn else settings.has_dsn)
    good = plan is not None and not findings
    if as_json:
        facts: dict[str, Any] = {"file": str(file), "ok": good, "problems": [f.as_dict() for f in findings]}
        if plan is not None:
            facts |= {"migration": plan.migration, "hash": plan.hash, "notes": notes(plan)}
        print_json(facts)
    elif plan is not None and good:
        tables = sum(len(service.tables) for service in plan.services.values())
        typer.echo(f"{file}: plan {plan.migration}, {len(plan.services)} services, {tables} tables: no problem")
        typer.echo(f"hash {plan.hash}")
        for note in notes(plan):
            typer.echo(f"note: {note}")
    else:
        _print_findings(findings)
    if not good:
        raise typer.Exit(Exit.WRONG_INPUT)


@app.command()
@plainly()
def explain(file: File, as_json: Json = False) -> None:
    """Print the plan with every default filled in; the output is a plan file with the same hash."""
    plan = _plan(file)
    if as_json:
        print_json(plan.model_dump(mode="json"))
    else:
        typer.echo(f"# note: {TRAFFIC}")
        typer.echo(explain_plan(plan), nl=False)


@app.command()
@plainly()
def register(
    file: File,
    by: Annotated[str, typer.Option("--by", help="Who registers it (default: your login).", show_default=False)] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a change.")] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="A running migration goes by this plan; voids the approvals given so far.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Store the plan in the control database. A changed plan waits there; it never applies to a running migration by
    itself."""
    plan = _plan(file)
    run(_register(plan, login(by), ask=not yes, adopt=adopt, as_json=as_json))


async def _register(plan: Plan, by: str, *, ask: bool, adopt: bool, as_json: bool) -> None:
    async with connected(Settings.from_environment()) as control:
        former = await _registered(control, plan.migration)
        changed = changes(former, plan) if former else []
        if not as_json:
            _print_changes(plan, former, changed)
        if ask and (changed or adopt):
            # On stderr, so that `--json` stays JSON. Without a terminal there is nobody to ask: typer aborts.
            question = "Adopt this plan, and void the approvals given so far?" if adopt else "Register this plan?"
            typer.confirm(question, abort=True, err=True)
        record = await plans.register(control, plan, by)
        if adopt:
            await plans.bind(control, plan.migration, plan.hash, by, adopt=True)
    active = record.active or adopt
    if as_json:
        print_json(
            {
                "migration": plan.migration,
                "hash": plan.hash,
                "registered_at": record.registered_at.isoformat(),
                "active": active,
                "message": "" if active else record.message,
                "changes": [{"path": c.path, "before": c.before, "after": c.after} for c in changed],
            }
        )
    elif active:
        typer.echo(f"registered: {plan.migration}, plan {plan.hash}")
    else:
        typer.echo(f"pending: plan {plan.hash}\n{record.message}")


async def _registered(control: Control, migration: str) -> Plan | None:
    """The plan that the migration goes by now, or None before its first one."""
    try:
        record = await plans.record(control, migration)
    except Refused:
        return None
    return await plans.load(control, migration, record.hash)


def _print_changes(plan: Plan, former: Plan | None, changed: Sequence[Change]) -> None:
    if former is None:
        typer.echo(f"{plan.migration}: the first plan of this migration")
    elif not changed:
        typer.echo(f"{plan.migration}: the plan is the registered one, nothing changes")
    else:
        typer.echo(f"{plan.migration}: {len(changed)} changes against plan {former.hash[:12]}")
        for change in changed:
            typer.echo(f"  {change}")


def _plan(file: Path) -> Plan:
    """The plan in a file; prints its problems and ends the command where it has some."""
    plan, findings = examine_file(file)
    if plan is None or findings:
        _print_findings(findings)
        raise typer.Exit(Exit.WRONG_INPUT)
    return plan


def _print_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        typer.echo(str(finding), err=True)
    typer.echo(f"{len(findings)} problem{'s' if len(findings) != 1 else ''}", err=True)
