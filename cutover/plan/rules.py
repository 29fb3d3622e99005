"""Rules that tie several values of a plan together. They read plain data, however broken the rest of it is.

One list for the loader (which adds lines) and for the model itself (plans built in code or read from JSON).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from cutover.plan.checklist import automatic_keys
from cutover.plan.durations import parse_duration
from cutover.plan.fields import canonical

CONTROL = "control"
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """What is wrong at a path of the plan, and what would be right."""

    path: Path
    what: str
    right: str


def problems(data: object) -> list[Problem]:
    """All broken rules of a plan given as plain data (the file's values, or the model's JSON)."""
    if not isinstance(data, Mapping):
        return []
    services = {name: s for name, s in _mapping(data, "services").items() if isinstance(name, str)}
    return [
        *_databases(data, services),
        *_tables(data, services),
        *_table_rules(services),
        *_references(data, services),
        *_names(services),
    ]


def _mapping(data: object, *keys: str) -> Mapping[Any, Any]:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def _databases(data: Mapping[str, Any], services: Mapping[str, Any]) -> Iterator[Problem]:
    """Each database has one role. Names are compared as the environment's variables spell them."""
    seen: dict[str, str] = {re.sub("[^A-Z0-9]", "_", CONTROL.upper()): "the control database"}
    roles: list[tuple[Path, object, str]] = [(("monolith",), data.get("monolith"), "the monolith's database")]
    roles += [(("services", name), service, f"the database of {name}") for name, service in services.items()]
    for path, holder, role in roles:
        for key, what in (("database", role), ("replica", f"the replica of {role}")):
            database = holder.get(key) if isinstance(holder, Mapping) else None
            if not isinstance(database, str) or not database:
                continue
            variable = re.sub("[^A-Z0-9]", "_", database.upper())
            if variable in seen:
                yield Problem(
                    (*path, key),
                    f"{what} is the same as {seen[variable]} (both read CUTOVER_DSN_{variable})",
                    "give each service a database of its own" if key == "database" else "name the replica itself",
                )
            seen.setdefault(variable, what)


def _tables(data: Mapping[str, Any], services: Mapping[str, Any]) -> Iterator[Problem]:
    """Each table has exactly one owner."""
    owners: dict[str, str] = {}
    for name, service in services.items():
        for table in _mapping(service, "tables"):
            if not isinstance(table, str):
                continue
            first = owners.setdefault(canonical(table), name)
            path = ("services", name, "tables", table)
            if first != name:
                yield Problem(path, f"table {table} is in two services, {first} and {name}", "leave it in one of them")
    listed = _mapping(data, "monolith").get("tables")
    for index, table in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(table, str) and canonical(table) not in owners:
            found = get_close_matches(canonical(table), list(owners), 1)
            hint = f" (did you mean {found[0]}?)" if found else ""
            yield Problem(
                ("monolith", "tables", index),
                f"table {table} has no owner",
                f"list it under services.<service>.tables, or take it out of monolith.tables{hint}",
            )


def _table_rules(services: Mapping[str, Any]) -> Iterator[Problem]:
    for name, service in services.items():
        level, stream = _mapping(services, name).get("consistency", "eventual"), _mapping(services, name).get("stream")
        not_ours = stream in (None, "logical", "kafka")
        if level in ("strong", "best_effort") and not_ours:
            yield Problem(
                ("services", name, "consistency"),
                f"{level} is a level of dual-write, and stream {stream or 'logical'} is always eventual",
                "write `stream: outbox` (dual-write) with it, or `consistency: eventual`",
            )
        if not_ours and _mapping(services, name).get("truncate") == "refuse":
            yield Problem(
                ("services", name, "truncate"),
                f"stream {stream or 'logical'} carries every TRUNCATE over as one",
                "write `stream: outbox` with it, or leave it out",
            )
        spellings: dict[str, str] = {}
        for table, rules in _mapping(service, "tables").items():
            path: Path = ("services", name, "tables", table)
            if isinstance(table, str) and spellings.setdefault(canonical(table), table) != table:
                yield Problem(path, f"{table} and {spellings[canonical(table)]} are the same table", "list it once")
            if _mapping(rules).get("conflict") == "last-write-wins" and not rules.get("timestamp"):
                yield Problem(
                    (*path, "conflict"),
                    "last-write-wins needs a column to compare by",
                    "add `timestamp: <column>`, or choose source-wins or manual",
                )
            cadence = {"every": "5m", "max_lag": "10m", **_mapping(rules, "reconcile")}
            every, max_lag = _seconds(cadence["every"]), _seconds(cadence["max_lag"])
            if every is not None and max_lag is not None and max_lag < every:
                yield Problem(
                    (*path, "reconcile", "max_lag"),
                    "max_lag is shorter than every, so that evidence would be too old before its successor is due",
                    "make max_lag at least as long as every",
                )
            excluded = _mapping(rules, "compare").get("exclude")
            for column in _mapping(rules, "compare", "equal"):
                if isinstance(excluded, list) and column in excluded:
                    yield Problem(
                        (*path, "compare", "equal", column),
                        f"column {column} is left out of the comparison, so nothing of it can count as equal",
                        "take it out of exclude or out of equal",
                    )


def _seconds(value: object) -> float | None:
    try:
        return parse_duration(value).total_seconds() if isinstance(value, str) else None
    except ValueError:
        return None  # the field's own error says so


def _references(data: Mapping[str, Any], services: Mapping[str, Any]) -> Iterator[Problem]:
    """Whatever names a service or a task names one that exists."""
    order = _mapping(data, "switchover").get("order")
    if isinstance(order, list) and order:
        for index, name in enumerate(order):
            if isinstance(name, str) and name not in services:
                yield _unknown(("switchover", "order", index), name, services)
            elif name in order[:index]:
                yield Problem(("switchover", "order", index), f"service {name} is listed twice", "list it once")
        if left := [name for name in services if name not in order]:
            yield Problem(
                ("switchover", "order"), f"service {', '.join(left)} is not in the order", "list every service, or none"
            )
    for name, task in _mapping(data, "tasks").items():
        service = _mapping(task).get("service")
        if isinstance(service, str) and service not in services:
            yield _unknown(("tasks", name, "service"), service, services)
        if name in automatic_keys():
            yield Problem(
                ("tasks", name),
                "this item is checked by the programme, with evidence, and not by a person",
                "choose another name for a task of your own",
            )


def _unknown(path: Path, name: str, services: Mapping[str, Any]) -> Problem:
    found = get_close_matches(name, list(services), 1)
    right = f"did you mean {found[0]}?" if found else f"services of this plan: {', '.join(services) or 'none'}"
    return Problem(path, f"unknown service {name}", right)


def _names(services: Mapping[str, Any]) -> Iterator[Problem]:
    """`x_reverse` would take the names of x's reverse publication, subscription and slot."""
    for name in services:
        if name.endswith("_reverse") and name.removesuffix("_reverse") in services:
            yield Problem(
                ("services", name),
                f"the name clashes with the reverse stream of {name.removesuffix('_reverse')}",
                "give the service a name that does not end in _reverse",
            )
