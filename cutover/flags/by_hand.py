"""Flags as a person sets them: what is safe at any time is done, what a gate decides is measured or refused."""

import re
from typing import Literal

from cutover.control import plans, reports
from cutover.control.database import Control
from cutover.errors import Conflict, GateClosed, Refused
from cutover.flags import store
from cutover.flags.store import Route

Kind = Literal["read_from_new", "write_to_new_primary", "percentage"]

_NAME = re.compile(r"(?P<service>.+)_(?P<kind>read_from_new|write_to_new_primary|percentage)")


def parse(name: str, text: str) -> tuple[str, Kind, int]:
    """(service, kind, value) of `trading_engine_percentage` and `30`; a switch is 1 or 0. Raises ValueError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is no flag: SERVICE_read_from_new, SERVICE_write_to_new_primary, SERVICE_percentage"
        )
    service, kind = match["service"], match["kind"]
    if kind == "percentage":
        if not (text.isascii() and text.isdigit() and int(text) <= 100):
            raise ValueError(f"{text!r} is no share of the reads: a whole number, 0 to 100")
        return service, "percentage", int(text)
    if text not in ("true", "false"):
        raise ValueError(f"{text!r}: true or false")
    return service, "read_from_new" if kind == "read_from_new" else "write_to_new_primary", int(text == "true")


async def change(control: Control, migration: str, name: str, text: str, *, by: str, reason: str) -> tuple[Route, bool]:
    """Set the flag; the route, and whether it is another one now. Idempotent; leaves an audit row with who and why.

    Fewer reads at the new side are always allowed, more only on evidence: for each table a complete pass, not older
    than its `max_lag`, with differences within the plan's `mismatch_rate`. Raises ValueError for a wrong name or value,
    GateClosed where the evidence does not hold, Conflict during a switch's pause, Refused for the flag of the writes.
    """
    service, kind, value = parse(name, text)
    (await plans.load(control, migration)).service(service)
    route = await store.get(control, migration, service)
    if kind == "write_to_new_primary":
        if int(route.write_to_new_primary) == value:
            return route, False
        raise Refused(
            f"{name} moves with the writes themselves, in a switch: cutover start switchover {migration} {service}, "
            f"and back: cutover rollback migration/{migration}/{service}/switchover"
        )
    share = value if kind == "percentage" else value * 100
    if share == route.percentage:
        return route, False
    if route.paused:
        raise Conflict(f"{service}: a switch is in its pause; set {name} after it")
    if share > route.percentage and not route.write_to_new_primary:
        await _evidence(control, migration, service)
    return await store.set_percentage(control, migration, service, share, actor=by, reason=reason), True


async def _evidence(control: Control, migration: str, service: str) -> None:
    """Raises GateClosed unless every table has been compared lately, with few enough differences."""
    plan = await plans.load(control, migration)
    limit = plan.thresholds.mismatch_rate
    problems = []
    for table, rules in plan.service(service).tables.items():
        report = await reports.latest(control, migration, service, table, direction="forward", decisive=True)
        oldest = rules.reconcile.max_lag.total_seconds()
        if report is None:
            problems.append(f"{table} has not been compared")
        elif report.age > oldest:
            problems.append(f"{table} was compared {report.age:.0f} s ago, {oldest:.0f} s are allowed")
        elif report.rate > limit:
            problems.append(f"{report.rate:.4%} of {table} differ, the limit is {limit:.4%}")
    if not problems:
        return
    remedy = f"Compare now: cutover reconcile {migration} --service {service}"
    if plan.monolith.replica or plan.service(service).replica:
        remedy = (
            "With a replica in the plan they move by the read switch only: "
            f"cutover start switchover {migration} {service}"
        )
    raise GateClosed(f"{service}: no more reads go to the service database while {'; '.join(problems)}. {remedy}")
