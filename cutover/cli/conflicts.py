"""`cutover conflicts`: the differing rows that no rule may mend, and what people decide about them."""

import shlex
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cutover.cli.connection import control
from cutover.cli.failing import login, plainly, print_json, run
from cutover.cli.texts import cell, key_text, moment, printable
from cutover.control import conflicts, plans
from cutover.control.conflicts import Case
from cutover.plan.durations import format_duration
from cutover.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Differing rows that wait for a person: list them, look, decide.")

Plan = Annotated[str, typer.Argument(help="The migration's name.")]
CaseId = Annotated[int, typer.Argument(metavar="CASE", help="The case's number, as `conflicts list` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Decide(StrEnum):
    """What may be decided."""

    PRIMARY = "primary"
    MENDED = "mended"


@app.command("list")
@plainly()
def list_cases(
    plan: Plan, service: Annotated[str, typer.Option(help="Only this service.")] = "", as_json: Json = False
) -> None:
    """The open cases of a migration, oldest first."""

    async def work() -> list[Case]:
        async with control(Settings.from_environment()) as opened:
            chosen = await plans.load(opened, plan)
            if service:
                chosen.service(service)
            return await conflicts.list_open(opened, plan, service or None)

    found = run(work())
    if as_json:
        print_json([_facts(case) for case in found])
        return
    if not found:
        typer.echo(f"{plan}: no open case")
        return
    shown = Table("case", "service", "table", "key", "kind", "rule", "seen", "opened", "deadline", "decision")
    for case in found:
        cells = (case.service, case.table, key_text(case.key_json), case.kind, case.rule, str(case.seen))
        due = cell(moment(case.due_at) + (", OVERDUE" if case.overdue else ""), "bold red" if case.overdue else "")
        shown.add_row(
            str(case.id), *map(cell, cells), moment(case.opened_at), due, cell(_decision(case))
        )  # fmt: skip
    Console().print(shown)
    typer.echo(f"look at one: cutover conflicts show {plan} {found[0].id}")


@app.command()
@plainly()
def show(plan: Plan, case_id: CaseId, as_json: Json = False) -> None:
    """One case: key, kind, rule, hashes of both rows and times; never a value of a row."""

    async def work() -> Case:
        async with control(Settings.from_environment()) as opened:
            return await conflicts.get(opened, plan, case_id)

    case = run(work())
    if as_json:
        print_json(_facts(case))
        return
    for name, value in _facts(case).items():
        if value not in (None, "", False):
            typer.echo(f"{name.replace('_', ' '):<12} {printable(str(value))}")
    if case.resolved_at is None and case.decision is None:
        key = shlex.quote(case.key_json)
        typer.echo(
            f"both rows, masked as the plan says: cutover diff {plan} {case.table} --key {key}\n"
            f"decide: cutover conflicts resolve {plan} {case.id} --decision primary --by YOU --reason WHY\n"
            "  primary: the primary's row is written over the other side by the next pass, if neither has changed\n"
            "  mended:  you have made both sides alike (write at the primary, the stream carries it); the next pass "
            "looks"
        )


@app.command()
@plainly()
def resolve(
    plan: Plan,
    case_id: CaseId,
    decision: Annotated[
        Decide, typer.Option(help="primary: its row goes over the other side; mended: you made both sides alike.")
    ],
    by: Annotated[str, typer.Option("--by", help="Who decides (default: your login).", show_default=False)] = "",
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """Decide a case. The next pass over its table applies it, and closes the case once both sides agree."""
    person = login(by)

    async def work() -> tuple[Case, str]:
        async with control(Settings.from_environment()) as opened:
            case = await conflicts.decide(opened, plan, case_id, person, decision.value, reason)
            rules = (await plans.load(opened, plan)).service(case.service).tables[case.table]
            return case, format_duration(rules.reconcile.every)

    case, every = run(work())
    if as_json:
        print_json(_facts(case))
        return
    typer.echo(
        f"case {case.id}: {case.decision}, as {case.decided_by}\n"
        f"the next pass over {case.table} applies it (every {every}), or now: "
        f"cutover reconcile {plan} --service {case.service} --table {case.table} --now"
    )


def _facts(case: Case) -> dict[str, Any]:
    """All that is kept of a case, in the order of reading."""
    return {
        "case": case.id,
        "migration": case.migration,
        "service": case.service,
        "table": case.table,
        "key": key_text(case.key_json),
        "kind": case.kind,
        "rule": case.rule,
        "why": case.detail.get("reason", ""),
        "direction": case.detail.get("direction", ""),
        "source_hash": _hash(case.detail.get("source_hash")),
        "target_hash": _hash(case.detail.get("target_hash")),
        "seen": case.seen,
        "opened": moment(case.opened_at),
        "last_seen": moment(case.last_at),
        "deadline": moment(case.due_at),
        "overdue": case.overdue,
        "decision": _decision(case),
        "reason": case.reason,
        "resolved": moment(case.resolved_at) if case.resolved_at else None,
        "resolved_by": case.resolved_by,
        "resolution": case.resolution,
    }


def _hash(value: Any) -> str | None:
    """A row's hash as hexadecimal; None where that side has no row."""
    return None if value is None else f"{int(value) & 0xFFFFFFFFFFFFFFFF:016x}"


def _decision(case: Case) -> str:
    if case.decision is None or case.decided_at is None:
        return ""
    return f"{case.decision}, by {case.decided_by} at {moment(case.decided_at)}"
