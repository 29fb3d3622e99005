"""Server settings, counted for all services in both directions at once.

Counts: PostgreSQL manual, 29.11 "Configuration Settings" of logical replication. A publisher needs a slot and a
sender for each subscription and for each table synchronisation worker; a subscriber an apply worker for each, the
synchronisation workers, one worker process more for the launcher, and as many replication origins (counted by
max_replication_slots before 18). Ours on top: a slot a service for changed keys, an origin a service for repairs,
and one for each writer of an outbox stream.
"""

from dataclasses import dataclass

from cutover.preflight.findings import Findings
from cutover.preflight.subject import Opened, Subject

#: Enough for the branches of one switch and for those that wait for a decision.
PREPARED = 20
#: Writers of an outbox stream at its sink, each under an origin of its own: two lanes of its relay, two of its copy.
OUTBOX_WRITERS = 4

#: Slots, senders and subscriptions that are not this plan's and stay; `$1`: our slots' names.
_USED = """
SELECT (SELECT count(*) FROM pg_catalog.pg_replication_slots
        WHERE NOT slot_name = ANY($1::text[]) AND NOT temporary AND slot_name !~ '^pg_[0-9]+_sync_') AS slots,
       (SELECT count(*) FROM pg_catalog.pg_stat_replication WHERE NOT application_name = ANY($1::text[])
          AND application_name !~ '^pg_[0-9]+_sync_') AS senders,
       (SELECT count(*) FROM pg_catalog.pg_subscription WHERE subenabled AND NOT subname = ANY($1::text[])) AS workers,
       current_setting('max_parallel_workers')::int AS parallel
"""


@dataclass(frozen=True)
class Need:
    """What one server needs, ours and what others use already."""

    slots: int
    senders: int
    workers: int
    processes: int
    origins: int


async def check_capacity(subject: Subject, findings: Findings) -> None:
    """wal_level, slots, senders, workers, processes, origins of every server, with the statements that set them."""
    for databases in subject.clusters().values():
        opened = databases[0]
        where = "server of " + ", ".join(sorted({o.name for o in databases}))
        need = await _need(subject, databases)
        if opened.facts.settings["wal_level"] != "logical":
            findings.blocking(
                "wal_level", where, f"wal_level is {opened.facts.settings['wal_level']}",
                "changes can be read from the WAL only with wal_level = logical, in both directions",
                "ALTER SYSTEM SET wal_level = 'logical';  -- restart needed",
            )  # fmt: skip
        origins = "max_active_replication_origins" if opened.facts.major >= 18 else "max_replication_slots"
        wanted = [
            ("max_replication_slots", need.slots, "a stream without a slot cannot start, nor its first copies"),
            ("max_wal_senders", need.senders, "each stream and each of its first copies needs a sender"),
            ("max_logical_replication_workers", need.workers, "each stream and each first copy needs a worker"),
            ("max_worker_processes", need.workers + 1, "logical workers and their launcher are taken from these"),
            (origins, need.origins, "each subscription, first copy and repair has a replication origin"),
        ]
        if any(rules.consistency == "strong" for rules in subject.plan.services.values()):
            wanted.append(("max_prepared_transactions", PREPARED, "strong consistency prepares the second side's part"))
        for name, at_least, why in wanted:
            has = int(opened.facts.settings.get(name, "0"))
            if has < at_least:
                findings.blocking(
                    name, where, f"{name} is {has}; {at_least} are needed", why,
                    f"ALTER SYSTEM SET {name} = {at_least};  -- restart needed",
                )  # fmt: skip
        _processes(opened, where, need, findings)
        _advice(opened, where, findings)


async def _need(subject: Subject, databases: list[Opened]) -> Need:
    """Counted for the time when every service has both directions, and the first copies run."""
    plan = subject.plan
    names = (("{}", "_sub"), ("{}", "_reverse_sub"), ("cutover_{}", "_changes"), ("cutover_{}", "_changes_rev"))
    ours = [prefix.format(service) + ending for service in plan.services for prefix, ending in names]
    [used] = await databases[0].connection.fetch(_USED, ours)
    sync = max(int(o.facts.settings.get("max_sync_workers_per_subscription", "2")) for o in subject.opened())
    logical = {s for s, rules in plan.services.items() if rules.stream == "logical"}
    read = {s for s, rules in plan.services.items() if rules.stream in ("logical", "kafka")}
    all_here = set(plan.services) if subject.monolith in databases else set()
    here = {s for s, target in subject.targets.items() if target in databases}
    # The monolith publishes forwards and subscribes backwards; a service's server the other way round.
    # Only the forward stream copies; the reverse one begins "from now".
    # A subscription copies no more tables at once than it has (its marker table is one of them).
    copies = {s: min(sync, len(plan.services[s].tables) + 1) for s in logical}
    published, copied_out = len(read & all_here) + len(read & here), sum(copies[s] for s in logical & all_here)
    subscribed, copied_in = len(logical & all_here) + len(logical & here), sum(copies[s] for s in logical & here)
    services = len(all_here) + len(here)
    outbox = {s for s, rules in plan.services.items() if rules.stream == "outbox"}
    writers = OUTBOX_WRITERS * (len(outbox & all_here) + len(outbox & here))
    workers = int(used["workers"]) + subscribed + copied_in
    return Need(
        slots=int(used["slots"]) + published + copied_out + services,
        senders=int(used["senders"]) + published + copied_out,
        workers=workers,
        processes=workers + 1 + int(used["parallel"]),
        origins=int(used["workers"]) + subscribed + copied_in + services + writers,
    )


def _processes(opened: Opened, where: str, need: Need, findings: Findings) -> None:
    has = int(opened.facts.settings["max_worker_processes"])
    if has < need.processes:
        findings.advice(
            "parallel_workers", where,
            f"max_worker_processes is {has}; parallel queries and all streams can want {need.processes} at once",
            "parallel queries may take the processes that an apply worker waits for",
            f"ALTER SYSTEM SET max_worker_processes = {need.processes};  -- restart needed",
        )  # fmt: skip


def _advice(opened: Opened, where: str, findings: Findings) -> None:
    """Settings that work as they are and can hurt."""
    settings = opened.facts.settings
    keep = settings.get("max_slot_wal_keep_size", "-1")
    if keep == "-1":
        findings.advice(
            "wal_keep_unlimited", where, "max_slot_wal_keep_size is unlimited",
            "a stream that stands still keeps WAL until the disk is full, and then the server stops",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '<a third of the WAL disk>'; SELECT pg_reload_conf();",
        )  # fmt: skip
    else:
        findings.advice(
            "wal_keep_limited", where, f"max_slot_wal_keep_size is {keep}",
            "a stream that falls behind by more loses its slot, and with it all evidence and the way back",
            "see that it holds some hours of WAL at peak",
        )  # fmt: skip
    if settings.get("idle_in_transaction_session_timeout", "0") in ("0", "0ms"):
        findings.advice(
            "idle_in_transaction", where, "idle_in_transaction_session_timeout is off",
            "a forgotten transaction holds off the fence, slot creation and VACUUM",
            "ALTER ROLE <application role> SET idle_in_transaction_session_timeout = '60s';",
        )  # fmt: skip
    if settings.get("synchronous_commit") == "off":
        findings.advice(
            "synchronous_commit", where, "synchronous_commit is off",
            "the server may forget acknowledged writes in a crash, whatever a migration does",
            "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();",
        )  # fmt: skip
    if settings.get("wal_retrieve_retry_interval") not in ("100ms", "200ms", "500ms", "1s"):
        findings.advice(
            "wal_retrieve_retry_interval", where,
            f"wal_retrieve_retry_interval is {settings.get('wal_retrieve_retry_interval')}",
            "an apply worker that stopped starts again only after it; a switch may have to wait for one",
            "ALTER SYSTEM SET wal_retrieve_retry_interval = '200ms'; SELECT pg_reload_conf();",
        )  # fmt: skip
