"""The checksum of a range of the first copy: rows and sum of row hashes, as read beside as written.

The source computes it in the snapshot that the range is read in, the target over the rows that the copy's transaction
has written, as they stand in the table. So it shows what nothing else between the two would: a trigger or a type at the
target that changes, drops or diverts rows, a value that is not stored as it was sent, rows lost on the way. Hashes are
those of reconciliation (`hashing`), over every column that is copied and with nothing passed over, whatever the plan's
`compare` says.
"""

from collections.abc import Mapping
from dataclasses import replace

import asyncpg

from cutover.errors import GateClosed
from cutover.postgres import hashing
from cutover.postgres.compare import Hashed
from cutover.postgres.identifiers import quote
from cutover.postgres.keys import Key
from cutover.postgres.outbox_tables import Flow
from cutover.postgres.shapes import Shape

#: The same in every copy, so that a range that is read twice unchanged has one checksum.
_SEED = 5


async def row_hashes(source: asyncpg.Connection, sink: asyncpg.Connection, flows: Mapping[str, Flow]) -> dict[str, str]:
    """SQL of a row's hash over the alias `t`, by table; both servers compute it alike."""
    shapes = {name: _exact(flow) for name, flow in flows.items()}
    agreed = await hashing.agree(source, sink, shapes.values(), _SEED)
    return {name: agreed.row(shape) for name, shape in shapes.items()}


def _exact(flow: Flow) -> Shape:
    """The columns that are copied, each as it is, in a form that fits both sides."""
    there = {c.name: c for c in flow.sink.columns}
    columns = tuple(
        replace(
            c,
            value=f"t.{quote(c.name)}",
            text=c.shown,
            own=c.own if c.own == there[c.name].own else "",
            not_null=c.not_null and there[c.name].not_null,
            left_out="",
        )
        for c in flow.source.columns
        if c.name in flow.source.stored
    )
    key = tuple(k for k in flow.source.key if k.name in flow.source.stored)
    return replace(flow.source, columns=columns, key=key)


async def as_read(source: asyncpg.Connection, flow: Flow, row_hash: str, low: Key | None, high: Key | None) -> Hashed:
    """Of the range at the source, in the snapshot of the transaction that is open there."""
    condition, values = flow.source.within(low, high)
    return await _sum(source, f"{flow.source.relation} AS t WHERE {condition}", row_hash, *values)


async def as_written(
    sink: asyncpg.Connection, flow: Flow, row_hash: str, low: Key | None, high: Key | None, xid: str
) -> Hashed:
    """Of the rows of the range that transaction (or subtransaction) `xid`, the present one, has written.

    For a table whose key sorts alike on both sides (`Shape.ordered`).
    """
    condition, values = flow.sink.within(low, high, 2)
    mine = f"{flow.sink.relation} AS t WHERE t.xmin = $1::text::xid AND {condition}"
    return await _sum(sink, mine, row_hash, xid, *values)


async def as_written_of(sink: asyncpg.Connection, staged: str, flow: Flow, row_hash: str, xid: str) -> Hashed:
    """Of the rows with the keys of the table `staged` that `xid` has written.

    For a table whose key the two sides sort differently: at the target a range of the source's is none.
    """
    mine = f"{staged} AS w JOIN {flow.sink.relation} AS t ON {_same(flow)} WHERE t.xmin = $1::text::xid"
    return await _sum(sink, mine, row_hash, xid)


def _same(flow: Flow) -> str:
    return " AND ".join(f"w.{quote(k.name)} {k.equals} t.{quote(k.name)}" for k in flow.sink.key)


async def of_staged(
    sink: asyncpg.Connection, staged: str, flow: Flow, row_hash: str, xid: str
) -> tuple[Hashed, Hashed]:
    """Of all rows of the table `staged`, and of those whose keys `xid` has written into the flow's table."""
    same = _same(flow)
    return await _sum(sink, f"{staged} AS t", row_hash), await _sum(
        sink,
        f"{staged} AS t WHERE EXISTS (SELECT FROM {flow.sink.relation} AS w WHERE {same} AND w.xmin = $1::text::xid)",
        row_hash,
        xid,
    )


async def _sum(connection: asyncpg.Connection, rows: str, row_hash: str, *values: str) -> Hashed:
    total = hashing.TOTAL.format(row_hash)
    [row] = await connection.fetch(f"SELECT count(*), coalesce({total}, 0)::text FROM {rows}", *values)
    return Hashed(row[0], int(row[1]))


def require_same(flow: Flow, chunk: int, wanted: Hashed, found: Hashed) -> None:
    """Raises GateClosed that names table and range where the two are not the same."""
    if wanted == found:
        return
    if wanted.rows == found.rows:
        what = f"the checksum of its {wanted.rows} rows is another one"
    else:
        what = f"{found.rows} of {wanted.rows} rows stand there"
    raise GateClosed(
        f"first copy of table {flow.table}, range {chunk}: the target does not hold what was read at the source: "
        f"{what}. Nothing of the range was kept. Look for what changes rows on their way into the table at the target "
        "(triggers that are ENABLE ALWAYS or REPLICA, domains, casts), take it away and run the copy again"
    )
