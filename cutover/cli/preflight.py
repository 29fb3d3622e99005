"""`cutover preflight`: what would break the migration of a plan, before it begins."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cutover.cli.failing import plainly, print_json, run
from cutover.devstack.binaries import client_programs
from cutover.errors import Exit
from cutover.plan.load import load
from cutover.preflight.findings import Finding, is_blocked
from cutover.preflight.run import preflight as run_preflight
from cutover.settings import Settings


@plainly()
def preflight(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The plan, a YAML file.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    sample: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=3600, help="How long the monolith's writers are watched.")
    ] = 3.0,
) -> None:
    """List what would break the migration, from both sides' catalogs. It changes nothing.

    Exit status 0: nothing blocks it; 1: something does; 2: the plan or a setting is wrong; 3: a server does not answer.
    """
    plan = load(file)
    settings = Settings.from_environment()
    findings = run(run_preflight(plan, settings.database, sample_seconds=sample, bindir=client_programs(settings)))
    blocked = is_blocked(findings)
    if json:
        print_json(
            {
                "migration": plan.migration,
                "hash": plan.hash,
                "blocked": blocked,
                "findings": [finding.as_dict() for finding in findings],
            }
        )
    else:
        show(findings, Console())
    if blocked:
        raise typer.Exit(Exit.REFUSED)


def show(findings: list[Finding], console: Console) -> None:
    """A table, blocking findings first, and one line that sums up."""
    blocking = [finding for finding in findings if finding.severity == "blocking"]
    if findings:
        table = Table(show_lines=True, expand=True)
        for title, ratio in (("", None), ("Where and what", 3), ("Why it matters", 3), ("What to do", 3)):
            table.add_column(title, ratio=ratio)
        for finding in findings:
            style = "bold red" if finding.severity == "blocking" else "yellow"
            place = Text(finding.where, style="bold").append(f"\n{finding.what}", style="not bold")
            # Text and not markup: names of tables may hold square brackets
            table.add_row(Text(finding.severity, style=style), place, Text(finding.why), Text(finding.remedy))
        console.print(table)
    advice = len(findings) - len(blocking)
    console.print(
        f"{len(blocking)} blocking, {advice} advice: "
        + ("the migration cannot begin like this" if blocking else "nothing blocks the migration")
    )
