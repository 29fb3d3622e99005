"""`cutover start`, and the messages to a run: approve, reject, pause, resume, rollback, retry, skip."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from activities import ids
from cutover.cli.connection import control
from cutover.cli.failing import login, plainly, print_json, run
from cutover.cli.waiting import answer, polled
from cutover.control import audit, plans
from cutover.errors import Exit, Unreachable
from cutover.settings import CONTROL, Settings
from cutover.telemetry.temporal import connect
from workflows.search import MIGRATION
from workflows.timeouts import TASK_QUEUE

By = Annotated[str, typer.Option("--by", help="Who acts (default: your login).", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.", show_default=False)]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The workflow id, as `cutover status` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class What(StrEnum):
    """What can be started."""

    MIGRATION = "migration"
    PREPARATION = "preparation"
    REPLICATION = "replication"
    SWITCHOVER = "switchover"
    CLEANUP = "cleanup"
    MONITOR = "monitor"


_OF_A_SERVICE = {What.REPLICATION, What.SWITCHOVER}


@plainly()
def start(
    what: Annotated[What, typer.Argument(help="The whole migration, or one phase alone.")],
    plan: Annotated[str, typer.Argument(help="The migration's name in its registered plan.")],
    service: Annotated[str, typer.Argument(help="The service, for replication and switchover.")] = "",
    as_json: Json = False,
) -> None:
    """Start the migration, or one phase of it alone. A run that runs already is not started twice."""
    if (what in _OF_A_SERVICE) != bool(service):
        needs = "needs a service" if what in _OF_A_SERVICE else "takes no service"
        raise typer.BadParameter(f"{what.value} {needs}: cutover start {what.value} {plan} …")
    workflow_id = {
        What.MIGRATION: lambda: ids.migration(plan),
        What.PREPARATION: lambda: ids.preparation(plan),
        What.REPLICATION: lambda: ids.replication(plan, service),
        What.SWITCHOVER: lambda: ids.switchover(plan, service),
        What.CLEANUP: lambda: ids.cleanup(plan),
        What.MONITOR: lambda: ids.monitor(plan),
    }[what]()
    name = f"{what.value.capitalize()}Workflow"
    payload = {"plan": plan, **({"service": service} if service else {})}
    settings = Settings.from_environment()

    async def work() -> None:
        await _require_plan(settings, plan, service)
        client = await connect(settings)
        handle = await client.start_workflow(
            name, payload, id=workflow_id, task_queue=TASK_QUEUE, static_summary=f"{what.value} of {service or plan}"
        )
        if as_json:
            print_json({"workflow_id": handle.id, "run_id": handle.first_execution_run_id})
        else:
            typer.echo(f"started {handle.id}\nwatch it with: cutover status {plan} --watch")
            if settings.temporal_ui:
                namespace = settings.temporal_namespace
                typer.echo(f"web page: {settings.temporal_ui}/namespaces/{namespace}/workflows/{handle.id}")
        if not await polled(client):
            typer.echo(f"no worker polls task queue {TASK_QUEUE!r} yet: start one with: cutover worker", err=True)

    run(work())


async def _require_plan(settings: Settings, plan: str, service: str) -> None:
    """Refuses what the run would refuse, while the person still looks. Raises Refused, PlanError.

    A control database that is away is no obstacle: the run waits for it.
    """
    if not settings.has_dsn(CONTROL):
        why = "no DSN is set here"
    else:
        try:
            async with control(settings) as opened:
                chosen = await plans.load(opened, plan)
        except Unreachable as error:
            why = str(error)
        else:
            if service:
                chosen.service(service)
            return
    typer.echo(f"not checked in the control database ({why}); the run itself will refuse a wrong plan", err=True)


def _send(action: str, run_id: str, payload: dict[str, Any], as_json: bool) -> None:
    """Sends an update: it is validated and answered, unlike a signal."""

    async def work() -> None:
        client = await connect(Settings.from_environment())
        answered = await answer(client, run_id, action, payload)
        if as_json:
            print_json({"workflow_id": run_id, "action": action, "answer": answered})
        else:
            typer.echo(answered)

    run(work())


@plainly()
def approve(
    run_id: RunId,
    evidence: Annotated[str, typer.Option(help="The code of the evidence you have seen.")] = "",
    gate: Annotated[str, typer.Option(help="Which gate, where several are open; `tasks` means all tasks.")] = "",
    by: By = "",
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Approve an open gate of a run."""
    _send("approve", run_id, _given(by, reason, evidence=evidence, gate=gate), as_json)


@plainly()
def reject(run_id: RunId, gate: str = "", by: By = "", reason: Reason = "", as_json: Json = False) -> None:
    """Reject an open gate: the run parks until `retry`."""
    _send("reject", run_id, _given(by, reason, gate=gate), as_json)


@plainly()
def pause(run_id: RunId, by: By = "", reason: Reason = "", as_json: Json = False) -> None:
    """Hold the run between two steps."""
    _send("pause", run_id, _given(by, reason), as_json)


@plainly()
def resume(run_id: RunId, by: By = "", reason: Reason = "", as_json: Json = False) -> None:
    """Let a paused run go on."""
    _send("resume", run_id, _given(by, reason), as_json)


@plainly()
def rollback(run_id: RunId, by: By = "", reason: Reason = "", as_json: Json = False) -> None:
    """Go back: reads, or reads and writes, to the monolith. One person is enough; it always alerts."""
    _send("rollback", run_id, _given(by, reason), as_json)


@plainly()
def retry(run_id: RunId, by: By = "", reason: Reason = "", as_json: Json = False) -> None:
    """Try the step again that a run is parked at, or measure a closed gate now."""
    _send("retry", run_id, _given(by, reason), as_json)


@plainly()
def skip(run_id: RunId, by: By = "", reason: Reason = "", as_json: Json = False) -> None:
    """Skip the step that a run is parked at, where that is allowed."""
    _send("skip", run_id, _given(by, reason), as_json)


def _given(by: str, reason: str, **fields: str) -> dict[str, str]:
    payload = {"by": login(by), "reason": reason, **fields}
    return {name: value for name, value in payload.items() if value}


@plainly()
def history(
    plan: Annotated[str, typer.Argument(help="The migration's name.")],
    limit: Annotated[int, typer.Option(help="How many entries of the audit log, the newest ones.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """The audit log of a migration, newest last, after its hash chain was checked."""

    async def work() -> int:
        settings = Settings.from_environment()
        async with control(settings) as opened, opened.connection() as connection:
            problems = await audit.verify(connection)
            rows = (await audit.entries(connection, plan, limit))[::-1]
        if as_json:
            print_json({"chain": problems or "whole", "entries": [vars(row) for row in rows]})
        else:
            for row in rows:
                detail = " ".join(f"{name}={value}" for name, value in row.detail.items())
                typer.echo(
                    f"{row.at:%Y-%m-%d %H:%M:%S}  {row.actor:<14} {row.action:<26} {row.service or '-'}  {detail}"
                )
            typer.echo("the hash chain is whole" if not problems else "\n".join(problems), err=bool(problems))
        return Exit.REFUSED if problems else Exit.DONE

    raise typer.Exit(run(work()))


async def open_runs(client: Any, migration: str) -> list[str]:
    """Ids of the migration's open runs, the programme first."""
    query = f"{MIGRATION.name} = '{migration}' AND ExecutionStatus = 'Running'"
    found = {run.id async for run in client.list_workflows(query)}
    return sorted(found, key=lambda one: (one.count("/"), one))
