"""One reconciliation pass over one table, started by a Temporal Schedule on the table's own cadence."""

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from activities.models import ResolveRequest
    from workflows.failures import StepFailed
    from workflows.messages import TableStart
    from workflows.passing import Passing


@workflow.defn(name="ReconciliationWorkflow")
class ReconciliationWorkflow(Passing[TableStart]):
    """`{"plan": "ai-trader", "service": "trading_engine", "table": "trades"}`.

    A pass that fails for good alerts and ends: the schedule makes the next one, and gates look at the
    age of the last complete report.
    """

    title = "Reconciliation"

    @workflow.init
    def __init__(self, start: Any = None) -> None:
        super().__init__(start, TableStart)

    @workflow.run
    async def run(self, start: Any = None) -> str:
        await self.begin()
        table = self.start.table
        rules = self.rules.service(self.service)
        known = [one.name for one in rules.tables] if rules else []
        if table not in known:
            self.fail(f"service {self.service!r} has no table {table[:60]!r}; it has: {', '.join(known)}", "Refused")
        await self.may_proceed()
        self.say(f"the pass over {table} to finish", state="RUNNING", phase="reconciliation")
        try:
            text = await self._pass(table)
        except StepFailed as failed:
            text = f"{table}: {failed.text}"
            await self.alert("reconciliation-failed", "warning", text, subject=table, best_effort=True)
            self.fail(f"{table}: {failed.text}", failed.kind)
            raise
        await self.end(f"nothing: {text}")
        return text

    async def _pass(self, table: str) -> str:
        result = await self.make_pass(table)
        text = (
            f"{table} ({result.direction}): {result.rows_source} rows, {result.missing} missing, {result.extra} extra, "
            f"{result.mismatched} mismatched, {result.unsettled} unsettled"
        )
        self.progress["result"] = text
        if result.differences:
            self.say(f"the conflict rule of {table} to be applied", state="RUNNING")
            resolved = await self.call(
                s.RESOLVE_CONFLICTS, ResolveRequest(ref=self.ref, table=table, report_id=result.report_id)
            )
            text += f"; {resolved.repaired} repaired, {resolved.cases} for a person"
            if resolved.refused:
                text += f"; the others stay as they are: {resolved.refused}"
        if result.rate > result.rate_limit:
            await self.alert(
                "mismatch-rate",
                "critical",
                f"{table}: {result.rate:.4%} of the rows differ, the limit is {result.rate_limit:.4%}",
                subject=table,
                best_effort=True,
            )
        return text
