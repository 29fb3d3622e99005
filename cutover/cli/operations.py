"""`cutover setup`, `worker` and `reconcile`."""

import json
import os
import sys
from datetime import timedelta
from typing import Annotated, Any

import typer
from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.table import Table
from rich.text import Text
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy

from cutover.cli.connection import control, temporal
from cutover.cli.failing import plainly, print_json, run
from cutover.cli.waiting import patiently, polled
from cutover.control import plans, reports
from cutover.errors import Exit, Unreachable
from cutover.plan.durations import RIGHT_DURATION, parse_duration
from cutover.settings import Settings
from workflows import ids, search
from workflows.timeouts import TASK_QUEUE

#: A run that is gone an hour after its end explains nothing.
SHORTEST_RETENTION = timedelta(hours=1)
#: Differing keys shown of one table; more are counted.
KEYS_SHOWN = 100

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@plainly()
def setup(
    retention: Annotated[str, typer.Option(help="How long closed runs are kept, as 90d or 720h.")] = "90d",
    as_json: Json = False,
) -> None:
    """Prepare a real server: search attributes, retention, the control database's schema. Safe to run again."""
    keep = _parse_retention(retention)

    async def work() -> None:
        settings = Settings.from_environment()
        client = await temporal(settings)
        added = await _search_attributes(client)
        await _retention(client, keep)
        async with control(settings) as opened:
            applied = await opened.migrate()
        if as_json:
            print_json({"search_attributes_added": added, "retention": retention, "migrations_applied": applied})
            return
        typer.echo(f"search attributes: {', '.join(added) + ' added' if added else 'all there'}")
        typer.echo(f"retention of namespace {client.namespace!r}: {retention}")
        typer.echo(f"control schema: {', '.join(applied) + ' applied' if applied else 'up to date'}")

    run(work())


def _parse_retention(text: str) -> timedelta:
    """Before anything is changed. Raises BadParameter."""
    try:
        keep = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}: {RIGHT_DURATION}", param_hint="--retention") from None
    if keep < SHORTEST_RETENTION or keep % timedelta(seconds=1):
        raise typer.BadParameter(
            f"{text!r}: whole seconds, and at least 1h, or nobody can read it", param_hint="--retention"
        )
    return keep


async def _search_attributes(client: Client) -> list[str]:
    operator = client.operator_service
    known = await operator.list_search_attributes(ListSearchAttributesRequest(namespace=client.namespace))
    missing = [key.name for key in search.ALL if key.name not in known.custom_attributes]
    if missing:
        keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
        await operator.add_search_attributes(
            AddSearchAttributesRequest(namespace=client.namespace, search_attributes=dict.fromkeys(missing, keyword))
        )
    return missing


async def _retention(client: Client, keep: timedelta) -> None:
    request = UpdateNamespaceRequest(namespace=client.namespace)
    request.config.workflow_execution_retention_ttl.CopyFrom(Duration(seconds=int(keep.total_seconds())))
    await client.workflow_service.update_namespace(request)


def worker() -> None:
    """Run a worker until SIGTERM or Ctrl-C; start two, on two machines where you can."""
    # a process of its own: the command line may not import the worker (the arrows point the other way)
    os.execv(sys.executable, [sys.executable, "-m", "workers"])


@plainly()
def reconcile(
    plan: Annotated[str, typer.Argument(help="The migration's name.")],
    service: Annotated[str, typer.Option(help="Only this service.")] = "",
    table: Annotated[str, typer.Option(help="Only this table.")] = "",
    show: Annotated[
        bool, typer.Option("--show", help="Only show the last reports, with the keys that differ; start nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare both sides now, table by table, with progress; exit status 1 where they differ."""

    async def work() -> int:
        settings = Settings.from_environment()
        async with control(settings) as opened:
            chosen = await plans.load(opened, plan)
            wanted = [
                (name, key)
                for name in ([service] if service else list(chosen.services))
                for key in chosen.service(name).tables
                if table in ("", key)
            ]
            if not wanted:
                raise typer.BadParameter(f"no service of {plan} has a table {table!r}")
            if not show:
                await _passes(settings, plan, wanted, quiet=as_json)
            found = [r for name, key in wanted if (r := await reports.latest(opened, plan, name, key)) is not None]
            keys = {
                report.id: await reports.open_differences(opened, plan, report.service, report.table, limit=KEYS_SHOWN)
                for report in found
                if show and report.differences
            }
        if as_json:
            print_json([_report(report, keys.get(report.id) if show else None) for report in found])
        else:
            _print_reports(found)
            for report in found:
                _print_keys(report, keys.get(report.id, []))
        return Exit.REFUSED if any(report.differences for report in found) else Exit.DONE

    raise typer.Exit(run(work()))


async def _passes(settings: Settings, plan: str, wanted: list[tuple[str, str]], *, quiet: bool) -> None:
    """A pass over each table, one after the other. Raises Unreachable where no worker would make it."""
    client = await temporal(settings)
    if not await polled(client):
        raise Unreachable(f"no worker polls task queue {TASK_QUEUE!r}, so nobody compares: start one (cutover worker)")
    for number, (name, key) in enumerate(wanted, 1):
        if not quiet:
            typer.echo(f"{number} of {len(wanted)}: comparing {name}: {key}", err=True)
        work = client.execute_workflow(
            "ReconciliationWorkflow",
            {"plan": plan, "service": name, "table": key},
            id=f"{ids.reconciliation(plan, name, key)}/by-hand",
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            task_queue=TASK_QUEUE,
        )
        await patiently(work, f"the pass over {key}")


def _report(report: reports.TableReport, keys: list[reports.Difference] | None) -> dict[str, Any]:
    """As JSON; with `--show` the differing keys and the hashes of their rows."""
    facts = report.model_dump(mode="json")
    if keys is not None:
        facts["keys"] = [
            {"key": json.loads(d.key_json), "kind": d.kind, "source_hash": d.source_hash, "target_hash": d.target_hash}
            for d in keys
        ]
    return facts


def _print_keys(report: reports.TableReport, keys: list[reports.Difference]) -> None:
    if not keys:
        return
    shown = Table("key", "kind", title=f"{report.service}: {report.table}", title_justify="left")
    for one in keys:
        shown.add_row(Text(", ".join(str(part) for part in json.loads(one.key_json))), one.kind)
    Console().print(shown)
    if report.differences > len(keys):
        typer.echo(f"… and {report.differences - len(keys)} more; all are in control.difference, report {report.id}")


def _print_reports(found: list[reports.TableReport]) -> None:
    shown = Table("service", "table", "direction", "rows", "missing", "extra", "mismatched", "unsettled", "took", "age")
    for r in found:
        shown.add_row(
            r.service, r.table, r.direction, f"{r.rows_source}/{r.rows_target}", str(r.missing), str(r.extra),
            str(r.mismatched), str(r.unsettled), f"{r.duration_ms / 1000:.1f} s", f"{r.age:.0f} s",
        )  # fmt: skip
    Console().print(shown)
    for r in found:
        for warning in r.warnings:
            typer.echo(f"{r.service}.{r.table}: {warning}")
        if r.left_out:
            typer.echo(f"{r.service}.{r.table}: not compared: {', '.join(r.left_out)}")
