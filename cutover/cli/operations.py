"""`cutover setup` and `worker`."""

import os
import sys
from datetime import timedelta
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest
from temporalio.client import Client

from cutover.cli.connection import control
from cutover.cli.failing import plainly, print_json, run
from cutover.plan.durations import RIGHT_DURATION, parse_duration
from cutover.settings import Settings
from cutover.telemetry.temporal import connect
from workflows import search

#: A run that is gone an hour after its end explains nothing.
SHORTEST_RETENTION = timedelta(hours=1)

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
        client = await connect(settings)
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
