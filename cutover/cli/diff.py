"""`cutover diff`: the two rows of a key side by side, values masked as the plan says."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cutover.cli.connection import control
from cutover.cli.failing import plainly, print_json, run
from cutover.cli.reports import first_keys
from cutover.cli.texts import cell, printable, span
from cutover.control import plans, reports
from cutover.errors import Exit
from cutover.flags import store as flags
from cutover.pairs import pair
from cutover.plan.fields import canonical
from cutover.postgres.databases import Side, direction_from, other
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import Key, key_from_json
from cutover.postgres.values import Value
from cutover.reconcile.side_by_side import ColumnPair, RowPair, side_by_side
from cutover.settings import Settings

ROWS_SHOWN = 10


@plainly()
def diff(
    plan: Annotated[str, typer.Argument(help="The migration's name.")],
    table: Annotated[str, typer.Argument(help="The table, as the plan names it.")],
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key", help="A key, again for each more; a composite one as a JSON array. Default: the last report's."
        ),
    ] = None,
    columns: Annotated[str, typer.Option(help="Only these columns, with commas between them.")] = "",
    limit: Annotated[int, typer.Option(help="How many rows of the last report.", min=1)] = ROWS_SHOWN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Set the two rows of differing keys side by side, as they are now.

    Shows the values of the key, and of the columns that the plan lists under `show_values` of the table. All others are
    masked inside the databases: the length of the text and a short digest, equal where the values are equal.

    Exit status 1 where a row differs.
    """

    async def work() -> int:
        settings = Settings.from_environment()
        async with control(settings) as opened:
            chosen = await plans.load(opened, plan)
            service = chosen.owner(table)
            name = next(one for one in chosen.service(service).tables if canonical(one) == canonical(table))
            rules = chosen.service(service).tables[name]
            route = await flags.find(opened, plan, service)
            primary: Side = route.primary_side if route else "monolith"
            report = await reports.latest(opened, plan, service, str(TableName.parse(name)))
            if key:
                keys = [_parsed(text) for text in key]
            else:
                keys = [key_from_json(d.key_json) for d in await first_keys(opened, report, limit)] if report else []
        wanted = [one.strip() for one in columns.split(",") if one.strip()]
        rows = await side_by_side(
            pair(chosen, service, settings.database), direction_from(primary), TableName.parse(name), keys,
            show=rules.show_values, columns=wanted,
        )  # fmt: skip
        if as_json:
            facts = {"migration": plan, "service": service, "table": name, "primary": primary}
            print_json({**facts, "rows": [_row_json(row, primary) for row in rows]})
        else:
            for row in rows:
                _show(name, row, primary)
            left = report.differences - len(rows) if report and not key else 0
            if not rows:
                typer.echo(_nothing(name, report))
            elif left > 0:
                typer.echo(f"… and {left} more; --limit shows more, --key one of them")
        return Exit.REFUSED if any(row.differs for row in rows) else Exit.DONE

    raise typer.Exit(run(work()))


def _parsed(text: str) -> Key:
    """A key as typed: a JSON array, or the one value itself. Raises BadParameter."""
    if not text.startswith("["):
        return (text,)
    try:
        parts = json.loads(text)
    except ValueError:
        return (text,)
    if not all(isinstance(part, str | int | float | bool) for part in parts):
        raise typer.BadParameter(f"{text}: a key holds texts and numbers, no null and no list", param_hint="--key")
    return tuple(part if isinstance(part, str) else json.dumps(part) for part in parts)


def _nothing(table: str, report: reports.TableReport | None) -> str:
    if report is None:
        return f"{table} was never compared: compare it (cutover reconcile), or name a key with --key"
    return f"{table}: the last report, {span(report.age)} old, found no difference; name a key with --key to look at it"


def _show(table: str, row: RowPair, primary: Side) -> None:
    typer.echo(printable(f"{table} {', '.join(row.key)}: {_verdict(row, primary)}"))
    shown = Table("", "column", f"{primary} (primary)", other(primary))
    for one in row.columns:
        style = "bold red" if one.differs else "dim" if one.differs is None else ""
        mark = "≠" if one.differs else "" if one.differs is False else "not compared"
        shown.add_row(mark, cell(one.name, style), _cell(one.source, style), _cell(one.target, style))
    Console().print(shown)


def _verdict(row: RowPair, primary: Side) -> str:
    if not row.in_source and not row.in_target:
        return "on neither side"
    if not row.in_target:
        return f"missing at the {other(primary)}"
    if not row.in_source:
        return f"extra at the {other(primary)}"
    differing = [one.name for one in row.columns if one.differs]
    return f"{', '.join(differing)} differ" if differing else "equal"


def _cell(value: Value | None, style: str) -> Any:
    if value is None:
        return cell("")
    if value.length is None:
        return cell("NULL", f"italic {style}".strip())
    if value.masked:
        return cell(f"‹{value.length} characters, {value.text}›", style)
    return cell(f"{value.text}… ({value.length} characters)" if value.cut else str(value.text), style)


def _row_json(row: RowPair, primary: Side) -> dict[str, Any]:
    def column(one: ColumnPair) -> dict[str, Any]:
        facts: dict[str, Any] = {"column": one.name, "differs": one.differs, "not_compared": one.left_out}
        return facts | {primary: _value_json(one.source), other(primary): _value_json(one.target)}

    return {
        "key": row.key, "verdict": _verdict(row, primary), "differs": row.differs,
        "columns": [column(one) for one in row.columns],
    }  # fmt: skip


def _value_json(value: Value | None) -> dict[str, Any] | None:
    """None where there is no row; a masked value has a digest and no value."""
    if value is None:
        return None
    if value.masked and value.length is not None:
        return {"length": value.length, "digest": value.text, "masked": True}
    return {"length": value.length, "value": value.text, "masked": value.masked, "cut": value.cut}
