"""The demo's report on a terminal; the same figures as `Findings.as_json`."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from examples.ai_trader.demo_verdict import Findings

_ALERTS = 12


def render(found: Findings) -> RenderableType:
    """The whole report; what did not hold stands at its end, where a person looks first."""
    parts: list[RenderableType] = [
        _phases(found),
        _switches(found),
        _tables(found),
        _clients(found),
        _alerts(found),
    ]
    if found.course.kills_wanted:
        parts.append(_kills(found))
    parts.append(Text(f"web page: {found.web_page}"))
    if found.problems:
        parts.append(Text(f"{len(found.problems)} things did not hold:", style="bold red"))
        parts += [Text(f"  - {one}", style="red") for one in found.problems]
    else:
        parts.append(Text("everything held", style="bold green"))
    return Group(*parts)


def write(found: Findings, console: Console | None = None) -> None:
    (console or Console()).print(render(found))


def _phases(found: Findings) -> Table:
    table = Table("phase", "seconds", title=f"the migration took {found.course.seconds:.0f} s", title_justify="left")
    for name, seconds in found.course.phases.items():
        table.add_row(name, f"{seconds:.1f}")
    return table


def _switches(found: Findings) -> Table:
    table = Table(
        "service", "writable side", "epoch", "pause ms", "of it writes", "by the audit log", "recovered", "result",
        title="switches", title_justify="left",
    )  # fmt: skip
    for line in found.switches:
        seen = "-" if line.client_pause_ms is None else f"{line.client_pause_ms:.1f}"
        measured = ("-", "-") if line.recovered else (f"{line.pause_ms:.1f}", f"{line.write_pause_ms:.1f}")
        result = line.result + (f": {line.reason}" if line.reason else "")
        recovered = "yes" if line.recovered else "no"
        table.add_row(line.service, f"→ {line.to_side}", str(line.epoch), *measured, seen, recovered, result)
    return table


def _tables(found: Findings) -> Table:
    title = (
        f"last pass of each table ({found.passes} passes in all, {found.differences_ever} differences ever confirmed)"
    )
    table = Table(
        "service", "table", "direction", "rows", "differences", "unsettled", title=title, title_justify="left"
    )
    for line in found.tables:
        table.add_row(
            line.service, line.table, line.direction, str(line.rows), str(line.differences), str(line.unsettled)
        )
    return table


def _clients(found: Findings) -> Table:
    course, clients, check = found.course, found.clients, found.check
    table = Table("clients", "", show_header=True, title_justify="left")
    lost = sum(check.violations.values())
    for name, value in (
        ("rows that the monolith was filled with", f"{course.rows}"),
        ("rows written a second through RoutedPool", f"{course.writes_per_second:.0f} (asked for: {course.rate:.0f})"),
        ("acknowledged writes", f"{clients.acknowledged} through RoutedPool, {clients.psql_acknowledged} by psql"),
        ("rows checked against the final databases", f"{check.rows_checked}"),
        ("lost, stale, resurrected or otherwise wrong", f"{lost}"),
        ("requests failed through RoutedPool", f"{clients.failed} writes, {clients.reads_failed} reads"),
        ("stale reads", f"{clients.stale_reads}"),
        ("held during pauses, retried", f"{clients.held}, {clients.retried}"),
        ("longest wait that a client saw", f"{clients.longest_wait_ms:.0f} ms"),
        (
            "unknown outcomes",
            f"{check.unknown_done + check.unknown_not_done} ({check.unknown_done} turned out to be there)",
        ),
        ("psql writes refused by the fence", f"{clients.psql_fenced}"),
        ("psql writes refused otherwise (tables renamed)", f"{clients.psql_failed}"),
    ):
        table.add_row(name, value)
    return table


def _alerts(found: Findings) -> Table:
    table = Table("severity", "kind", "service", "times", "text", title="alerts", title_justify="left")
    for one in found.alerts[:_ALERTS]:
        table.add_row(one["severity"], one["kind"], one["service"], str(one["count"]), one["text"])
    if len(found.alerts) > _ALERTS:
        table.add_row("", "", "", "", f"and {len(found.alerts) - _ALERTS} more")
    return table


def _kills(found: Findings) -> Table:
    table = Table("at", "kill -9 of", "moment", title="kills", title_justify="left")
    for one in found.course.kills:
        table.add_row(f"{one.at:.1f} s", one.process, one.moment)
    return table
