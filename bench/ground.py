"""The ground of a benchmark: two real clusters with the same rows, and what makes rows differ for a while.

The servers are the development stack's own, with settings such as a server of this size would have: durable writes,
and a buffer cache that holds the table of the default size. Autovacuum is off, so that it does not fall into a round.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from cutover.devstack import throwaway
from cutover.devstack.binaries import postgres_bin
from cutover.devstack.cluster import HOST, REPLICATION_SETTINGS, SUPERUSER, Cluster, free_port

SETTINGS = {
    **REPLICATION_SETTINGS,
    "shared_buffers": "2GB",
    "effective_cache_size": "4GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",
}
#: How its folders' names begin.
PREFIX = "cutover-bench-"
DATABASE = "bench"
TABLE = "trades"

#: Ten columns, about 200 bytes a row; two of the columns hold NULLs.
_CREATE = """
CREATE TABLE {table} (
    id bigint PRIMARY KEY, account uuid NOT NULL, symbol text NOT NULL, note text, quantity numeric(18,8) NOT NULL,
    price numeric(18,8) NOT NULL, filled boolean NOT NULL, details jsonb NOT NULL, placed_at timestamptz NOT NULL,
    settled_at timestamptz)
"""
_FILL = """
INSERT INTO {table}
SELECT n, md5(n::text)::uuid, (ARRAY['EURUSD', 'GBPUSD', 'XAUUSD', 'BTCUSDT', 'ETHUSDT'])[1 + n % 5],
       CASE WHEN n % 10 > 0 THEN 'order ' || n || ' of ' || md5((n * 7)::text) END,
       (n % 100003)::numeric / 1000, (n * 7919 % 10000019)::numeric / 100000, n % 3 > 0,
       jsonb_build_object('venue', 'v' || n % 17, 'fee', (n % 977)::numeric / 1000, 'tags', ARRAY[n % 7, n % 11]),
       timestamptz '2024-01-01Z' + n * interval '1.000001 seconds',
       CASE WHEN n % 4 > 0 THEN timestamptz '2024-01-02Z' + n * interval '1.000003 seconds' END
FROM generate_series($1::bigint, $2::bigint) AS n
"""
#: One other value for each column but the key: the smallest change that its type can show.
CHANGES = {
    "account": "md5(account::text)::uuid",
    "symbol": "lower(symbol)",
    "note": "coalesce(note || '.', '')",
    "quantity": "quantity + 0.00000001",
    "price": "-price - 0.00000001",
    "filled": "NOT filled",
    "details": "jsonb_set(details, '{fee}', (details ->> 'fee' || '0')::jsonb)",
    "placed_at": "placed_at + interval '1 microsecond'",
    "settled_at": "coalesce(settled_at + interval '1 microsecond', '2024-01-01Z')",
}


@dataclass(frozen=True)
class Ground:
    """Both clusters, running: the source has the application's writers, the target is the copy."""

    source: Cluster
    target: Cluster

    @property
    def both(self) -> tuple[Cluster, Cluster]:
        return self.source, self.target

    async def version(self) -> str:
        connection = await asyncpg.connect(self.source.dsn(DATABASE))
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()

    async def fill(self, table: str, rows: int) -> int:
        """Makes the table with keys 1 to `rows`, the same on both sides; its bytes, without the index."""
        source = await asyncpg.connect(self.source.dsn(DATABASE))
        target = await asyncpg.connect(self.target.dsn(DATABASE))
        try:
            await source.execute(_CREATE.format(table=table))
            await target.execute(_CREATE.format(table=table))
            step = 1_000_000
            for first in range(1, rows + 1, step):
                await source.execute(_FILL.format(table=table), first, min(rows, first + step - 1))
            copy_over(self.source, self.target, table)
            for connection in (source, target):
                await connection.execute(f"VACUUM (ANALYZE, FREEZE) {table}")
                await connection.execute("CHECKPOINT")
            return int(await source.fetchval("SELECT pg_relation_size($1::text::regclass)", table))
        finally:
            await source.close()
            await target.close()

    def chill(self) -> None:
        """Stops both servers, takes their files out of the system's page cache, and starts them again."""
        for cluster in self.both:
            cluster.stop()
        for cluster in self.both:
            _forget(cluster.data)
            cluster.start()


@contextmanager
def clusters(names: Sequence[str], settings: Mapping[str, str], *, durable: bool = True) -> Iterator[list[Cluster]]:
    """Running clusters in a throw-away folder; in memory where they need not be durable."""
    with throwaway.opened(PREFIX, durable=durable) as folder:
        made = [Cluster(name, folder / name, free_port(), settings) for name in names]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Cluster.start, made))
        yield made


@contextmanager
def ground() -> Iterator[Ground]:
    """Two running clusters with an empty database each."""
    with clusters(("source", "target"), SETTINGS) as both:
        for cluster in both:
            cluster.ensure_database(DATABASE)
        both[1].ensure_database("control")
        yield Ground(*both)


def copy_over(source: Cluster, target: Cluster, table: str) -> None:
    """All rows from one cluster to the other, in binary, so that every bit of every value is the same."""
    psql = [str(postgres_bin() / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", HOST, "-U", SUPERUSER, "-d", DATABASE]
    reader = subprocess.Popen(
        [*psql, "-p", str(source.port), "-c", f"COPY {table} TO STDOUT (FORMAT binary)"], stdout=subprocess.PIPE
    )
    try:
        subprocess.run(
            [*psql, "-p", str(target.port), "-c", f"COPY {table} FROM STDIN (FORMAT binary)"],
            stdin=reader.stdout,
            check=True,
        )
    finally:
        if reader.wait():
            raise RuntimeError(f"table {table} could not be read from cluster {source.name!r}")


@dataclass(frozen=True)
class Scattered:
    """Rows of the table that are changed at the target, and changed back: `keys` with the column of each."""

    target: Cluster
    table: str
    keys: dict[int, str]

    @classmethod
    def over(cls, target: Cluster, table: str, rows: int, count: int) -> "Scattered":
        """`count` keys at equal distances of about rows/count, the columns by turns."""
        names = list(CHANGES)
        distance = rows / count
        return cls(target, table, {1 + int((n + 0.37) * distance): names[n % len(names)] for n in range(count)})

    async def differ(self) -> None:
        connection = await asyncpg.connect(self.target.dsn(DATABASE))
        try:
            await connection.execute(f"CREATE TABLE IF NOT EXISTS before AS SELECT * FROM {self.table} WHERE false")
            await connection.execute(
                f"INSERT INTO before SELECT * FROM {self.table} WHERE id = ANY($1)", list(self.keys)
            )
            for column, value in CHANGES.items():
                await connection.execute(
                    f"UPDATE {self.table} SET {column} = {value} WHERE id = ANY($1)",
                    [key for key, changed in self.keys.items() if changed == column],
                )
        finally:
            await connection.close()

    async def agree(self) -> None:
        columns = ", ".join(CHANGES)
        connection = await asyncpg.connect(self.target.dsn(DATABASE))
        try:
            await connection.execute(
                f"UPDATE {self.table} t SET ({columns}) = ROW({', '.join('b.' + c for c in CHANGES)}) "
                "FROM before b WHERE b.id = t.id"
            )
            await connection.execute("DROP TABLE before")
            await connection.execute(f"VACUUM (ANALYZE) {self.table}")
        finally:
            await connection.close()


def _forget(folder: Path) -> None:
    """Asks the system to drop its copies of the folder's files; they are on disk, for the server has stopped."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
