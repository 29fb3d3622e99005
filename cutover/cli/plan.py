"""`cutover plan`: check a plan file, show it with every default filled in, register it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from temporalio.service import RPCError

from cutover.cli.connection import control as connected
from cutover.cli.failing import login, plainly, print_json, run
from cutover.cli.runs import open_runs
from cutover.control import adoption, plans
from cutover.control.adoption import Adoption
from cutover.control.database import Control
from cutover.errors import CutoverError, Exit, Refused
from cutover.plan.explain import Change, changes
from cutover.plan.explain import explain as explain_plan
from cutover.plan.load import Finding, examine_file
from cutover.plan.models import Plan
from cutover.plan.notes import TRAFFIC, notes
from cutover.settings import Settings
from cutover.telemetry.temporal import connect

#: Seconds for telling the runs; those that are not told find the plan themselves.
TELLING_SECONDS = 20.0

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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Store the plan in the control database. A changed plan waits there; it never applies to a running migration by
    itself: with --adopt a person decides that it does, after having seen what changes."""
    plan = _plan(file)
    work = _adopt if adopt else _register
    run(work(plan, login(by), ask=not yes, dry_run=dry_run, as_json=as_json))


async def _register(plan: Plan, by: str, *, ask: bool, dry_run: bool, as_json: bool) -> None:
    async with connected(Settings.from_environment()) as control:
        former = await _registered(control, plan.migration)
        changed = changes(former, plan) if former else []
        if not as_json:
            _print_changes(plan, former.hash if former else None, changed)
        if dry_run:
            if as_json:
                print_json({"migration": plan.migration, "hash": plan.hash, "changes": _as_json(changed)})
            return
        if ask and changed:
            # On stderr, so that `--json` stays JSON. Without a terminal there is nobody to ask: typer aborts.
            typer.confirm("Register this plan?", abort=True, err=True)
        record = await plans.register(control, plan, by)
    if as_json:
        print_json(
            {
                "migration": plan.migration,
                "hash": plan.hash,
                "registered_at": record.registered_at.isoformat(),
                "active": record.active,
                "message": record.message,
                "changes": _as_json(changed),
            }
        )
    elif record.active:
        typer.echo(f"registered: {plan.migration}, plan {plan.hash}")
    else:
        typer.echo(f"pending: plan {plan.hash}\n{record.message}")


async def _adopt(plan: Plan, by: str, *, ask: bool, dry_run: bool, as_json: bool) -> None:
    """Shown first, as a dry run; then one transaction in the control database; then the runs are told."""
    settings = Settings.from_environment()
    async with connected(settings) as control:
        seen = await adoption.preview(control, plan)
        if not as_json:
            _print_changes(plan, seen.former, seen.changes)
            typer.echo(f"approvals given so far that would no longer count: {seen.approvals_voided}")
        if dry_run and as_json:
            print_json(_adoption_facts(seen))
        if seen.obstacles:
            raise Refused("this plan cannot be adopted:\n" + "\n".join(f"  {one}" for one in seen.obstacles))
        if dry_run:
            return
        if ask and seen.former != plan.hash:
            typer.confirm("Adopt this plan, and void the approvals given so far?", abort=True, err=True)
        record = await plans.register(control, plan, by)
        done = await adoption.adopt(control, plan, by)
    told, problem = await _tell(settings, plan)
    if as_json:
        facts = {"registered_at": record.registered_at.isoformat(), "active": True, "told": told, "message": problem}
        print_json(_adoption_facts(done) | facts)
        return
    typer.echo(f"in force: {plan.migration}, plan {plan.hash}; {done.approvals_voided} approvals void")
    typer.echo(problem or f"told {len(told)} open runs, which take it over before their next step")


async def _tell(settings: Settings, plan: Plan) -> tuple[list[str], str]:
    """Signal every open run of the migration; those that were told, and what went wrong."""
    told: list[str] = []
    try:
        async with asyncio.timeout(TELLING_SECONDS):
            client = await connect(settings)
            for run in await open_runs(client, plan.migration):
                await client.get_workflow_handle(run).signal("plan_adopted", {"hash": plan.hash})
                told.append(run)
    except (CutoverError, RPCError, TimeoutError) as error:
        why = str(error) if isinstance(error, CutoverError) else "the Temporal server does not answer"
        return (
            told,
            f"not every open run could be told ({why}); each finds the plan by itself, at its next gate or sample",
        )
    return told, ""


def _adoption_facts(found: Adoption) -> dict[str, Any]:
    return {
        "migration": found.migration,
        "hash": found.hash,
        "former": found.former,
        "changes": _as_json(found.changes),
        "obstacles": found.obstacles,
        "approvals_voided": found.approvals_voided,
    }


def _as_json(changed: Sequence[Change]) -> list[dict[str, str | None]]:
    return [{"path": one.path, "before": one.before, "after": one.after} for one in changed]


async def _registered(control: Control, migration: str) -> Plan | None:
    """The plan that the migration goes by now, or None before its first one."""
    try:
        record = await plans.record(control, migration)
    except Refused:
        return None
    return await plans.load(control, migration, record.hash)


def _print_changes(plan: Plan, former: str | None, changed: Sequence[Change]) -> None:
    if former is None:
        typer.echo(f"{plan.migration}: the first plan of this migration")
    elif not changed:
        typer.echo(f"{plan.migration}: the plan is the registered one, nothing changes")
    else:
        typer.echo(f"{plan.migration}: {len(changed)} changes against plan {former[:12]}")
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
