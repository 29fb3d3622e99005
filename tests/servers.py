"""Real PostgreSQL clusters for the tests, and databases in them that come and go.

Running a cluster is `cutover.devstack.cluster`; here is only what a test adds: throw-away folders, free ports,
no fsync, and a clean end for a database that still has subscriptions, slots or prepared transactions.
"""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import asyncpg

from cutover.devstack import throwaway
from cutover.devstack.accounts import give, server_account
from cutover.devstack.binaries import postgres_bin
from cutover.devstack.cluster import REPLICATION_SETTINGS, Cluster, free_port
from cutover.postgres.databases import Database
from cutover.postgres.identifiers import quote

#: Little log is kept, for it may be in memory.
TEST_SETTINGS = {
    **REPLICATION_SETTINGS,
    **throwaway.SETTINGS,
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
}

PREFIX = "cutover-test-"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Clusters:
    """Two clusters: a subscription inside one would wait for itself, and two are what a migration has."""

    monolith: Cluster
    services: Cluster


@contextmanager
def run_clusters() -> Iterator[Clusters]:
    """Two running clusters in a throw-away folder; stopped and deleted at the end."""
    with throwaway.opened(PREFIX, durable=False) as folder:
        both = [Cluster(name, folder / name, free_port(), TEST_SETTINGS) for name in ("monolith", "services")]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Cluster.start, both))
        yield Clusters(*both)


@contextmanager
def standby_of(primary: Cluster) -> Iterator[Cluster]:
    """A running physical replica of a cluster, beside its folder; stopped and deleted at the end."""
    folder = primary.folder.parent / "standby"
    standby = Cluster("standby", give(folder, server_account()), free_port(), {**primary.settings, "hot_standby": "on"})
    try:
        source = primary.superuser_dsn("postgres")
        subprocess.run(
            [str(postgres_bin() / "pg_basebackup"), "-D", str(standby.data), "-d", source, "-R", "-c", "fast", "-X",
             "stream"],
            check=True, capture_output=True,
        )  # fmt: skip
        account = server_account()
        if account.uid is not None and account.gid is not None:
            for path in (standby.data, *standby.data.rglob("*")):
                os.chown(path, account.uid, account.gid)
        yield standby.start()
    finally:
        standby.kill9()
        shutil.rmtree(folder, ignore_errors=True)


async def create_database(cluster: Cluster, name: str, template: Database | None = None) -> Database:
    """A fresh database, empty or a copy of `template`; `name` is what a plan would call it, the real name is unique."""
    real = f"{name[:40]}_{os.getpid()}_{next(_numbers)}"
    connection = await asyncpg.connect(cluster.superuser_dsn("postgres"))
    try:
        source = f" TEMPLATE {quote(_real(template))}" if template else ""
        if connection.get_server_version().major >= 15:
            source += " STRATEGY file_copy"  # half the time, as nothing is flushed
        await connection.execute(f"CREATE DATABASE {quote(real)}{source}")
    finally:
        await connection.close()
    return Database(name, cluster.dsn(real))


def _real(database: Database) -> str:
    return database.dsn.rpartition("/")[2]


async def drop_database(cluster: Cluster, database: Database) -> None:
    """Drop a database of `create_database` with everything that would hold it."""
    real = _real(database)
    if not cluster.ready():
        cluster.start()  # a test has killed it
    inside = await asyncpg.connect(database.dsn)
    try:
        for gid in await inside.fetch("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
            await inside.execute("ROLLBACK PREPARED '" + gid["gid"].replace("'", "''") + "'")
        for row in await inside.fetch(
            "SELECT subname FROM pg_subscription WHERE subdbid = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        ):
            subscription = quote(row["subname"])
            await inside.execute(f"ALTER SUBSCRIPTION {subscription} DISABLE")
            await inside.execute(f"ALTER SUBSCRIPTION {subscription} SET (slot_name = NONE)")
            await inside.execute(f"DROP SUBSCRIPTION {subscription}")
    finally:
        await inside.close()
    outside = await asyncpg.connect(cluster.superuser_dsn("postgres"))
    try:
        await outside.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots "
            "WHERE database = $1 AND active_pid IS NOT NULL",
            real,
        )
        for row in await outside.fetch("SELECT slot_name FROM pg_replication_slots WHERE database = $1", real):
            await _drop_slot(outside, row["slot_name"])
        await outside.execute(f"DROP DATABASE IF EXISTS {quote(real)} WITH (FORCE)")
        # Origins belong to the cluster and would bring one test's progress into the next.
        for row in await outside.fetch("SELECT roname FROM pg_replication_origin WHERE roname LIKE 'cutover\\_%'"):
            try:
                await outside.execute("SELECT pg_replication_origin_drop($1)", row["roname"])
            except asyncpg.ObjectInUseError:
                continue  # a session in the test's other database; dropped with that one
    finally:
        await outside.close()


async def _drop_slot(connection: asyncpg.Connection, name: str) -> None:
    """Drop a slot; a just-ended walsender may hold it for a moment more."""
    for attempt in range(50):
        try:
            await connection.execute("SELECT pg_drop_replication_slot($1)", name)
            return
        except asyncpg.ObjectInUseError:
            if attempt == 49:
                raise
            await connection.execute("SELECT pg_sleep(0.05)")
        except asyncpg.UndefinedObjectError:
            return
