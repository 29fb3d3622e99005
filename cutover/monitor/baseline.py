"""What a service's operations took before its stream started: the measure of its thresholds."""

from dataclasses import dataclass
from datetime import timedelta

from cutover.control import audit
from cutover.control.audit import Entry
from cutover.control.database import Control
from cutover.monitor import statistics
from cutover.monitor.statistics import Operation, Tally

#: Operations of one table below which its latency or error rate says nothing.
MINIMUM_OPERATIONS = 20


@dataclass(frozen=True)
class Baseline:
    """One table and kind of operation. Durations in seconds; None where nothing was measured."""

    table: str
    operation: Operation
    attempts: int
    failures: int
    p95: float | None
    mean: float | None
    window: float

    @property
    def error_rate(self) -> float:
        return self.failures / self.attempts if self.attempts else 0.0


async def record(control: Control, migration: str, service: str, window: timedelta) -> list[Baseline]:
    """Records what the applications measured at the monolith within the last `window`, in place of any older baseline.

    A window in which nothing was measured changes nothing: a service without traffic has no baseline, and a second
    run after the traffic stopped does not lose the first one's. Raises Unreachable.
    """
    tallies = await _measured(control, migration, service, window)
    found = [
        Baseline(table, operation, t.attempts, t.failures, t.p95, t.mean, window.total_seconds())
        for (table, operation), t in sorted(tallies.items())
    ]
    if found:
        async with control.transaction() as connection:
            await connection.execute(
                "DELETE FROM control.baseline WHERE migration = $1 AND service = $2", migration, service
            )
            await connection.executemany(
                "INSERT INTO control.baseline (migration, service, table_name, operation, attempts, failures, p95_s,"
                " mean_s, window_s) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                [
                    (migration, service, b.table, b.operation, b.attempts, b.failures, b.p95, b.mean, b.window)
                    for b in found
                ],
            )
            detail = {"operations": len(found), "attempts": sum(b.attempts for b in found), "window_s": found[0].window}
            await audit.append(connection, Entry("replication", "baseline.recorded", migration, service, detail))
    return found


async def too_few(control: Control, migration: str, service: str, window: timedelta) -> list[Operation]:
    """Kinds of operations that were measured, but at no table often enough to be compared with later."""
    most: dict[Operation, int] = {}
    for (_, operation), tally in (await _measured(control, migration, service, window)).items():
        most[operation] = max(most.get(operation, 0), tally.attempts)
    return sorted(operation for operation, attempts in most.items() if attempts < MINIMUM_OPERATIONS)


async def _measured(
    control: Control, migration: str, service: str, window: timedelta
) -> dict[tuple[str, Operation], Tally]:
    found = await statistics.window(control, migration, service, window)
    return {(key.table, key.operation): tally for key, tally in found.items() if key.side == "monolith"}


async def load(control: Control, migration: str, service: str) -> dict[tuple[str, Operation], Baseline]:
    """The recorded baselines by table and operation; empty before `record`."""
    rows = await control.fetch(
        "SELECT table_name, operation, attempts, failures, p95_s, mean_s, window_s FROM control.baseline"
        " WHERE migration = $1 AND service = $2",
        migration,
        service,
    )
    return {
        (row["table_name"], row["operation"]): Baseline(
            row["table_name"],
            row["operation"],
            row["attempts"],
            row["failures"],
            row["p95_s"],
            row["mean_s"],
            row["window_s"],
        )
        for row in rows
    }
