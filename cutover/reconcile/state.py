"""Where a pass stands, in the control database, so that a killed one goes on at its last finished range.

It is held here and not in a heartbeat because keys are rows of the user's data (invariant 8). Each run of a pass, and
each walk of a span of it, draws a new `attempt`; one that another has overtaken gets StaleAttempt at its next write.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from cutover.control.database import Connection, Control
from cutover.control.reports import TableReport
from cutover.errors import StaleAttempt
from cutover.postgres.compare import Look
from cutover.postgres.keys import Key, key_from_json, key_id, key_json
from cutover.reconcile.ranges import Candidate
from cutover.reconcile.spans import Span

#: Keys that travel to or from the control database at once.
BATCH = 2_000
#: Keys put beside a report by one statement.
PUBLISHED = 20_000

_OPEN = """
INSERT INTO control.pass (id, migration, service, table_name, direction, plan_hash, seed, position, sink_position,
                          rows_estimated)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (id) DO UPDATE SET attempt = control.pass.attempt + 1, updated_at = clock_timestamp()
RETURNING *
"""
_TIDY = """
DELETE FROM control.pass WHERE migration = $1 AND service = $2 AND table_name = $3 AND id <> $4
AND updated_at < clock_timestamp() - CASE WHEN report_id IS NULL THEN interval '1 day' ELSE interval '1 hour' END
"""
_MINE = "SELECT 1 FROM control.pass WHERE id = $1 AND attempt = $2 FOR UPDATE"
_SPAN_MINE = "SELECT 1 FROM control.pass_span WHERE pass_id = $1 AND number = $2 AND attempt = $3 FOR UPDATE"
_KEEP = """
INSERT INTO control.pass_candidate
       (pass_id, round, key_id, key_json, source_hash, source_xmin, target_hash, target_xmin)
SELECT $1, $2::int, * FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])
ON CONFLICT (pass_id, key_id) DO UPDATE
SET source_hash = EXCLUDED.source_hash, source_xmin = EXCLUDED.source_xmin, target_hash = EXCLUDED.target_hash,
    target_xmin = EXCLUDED.target_xmin, round = EXCLUDED.round, confirmed = false
"""
_CUT = """
WITH cut AS (UPDATE control.pass SET spans = cardinality($3::jsonb[]), rows_source = 0, rows_target = 0,
             updated_at = clock_timestamp() WHERE id = $1 AND attempt = $2 RETURNING id),
gone AS (DELETE FROM control.pass_span WHERE pass_id = $1 AND number > cardinality($3::jsonb[]))
INSERT INTO control.pass_span (pass_id, number, span)
SELECT cut.id, s.number, s.span FROM cut, unnest($3::jsonb[]) WITH ORDINALITY AS s(span, number)
ON CONFLICT (pass_id, number) DO UPDATE SET span = EXCLUDED.span, after_key = NULL, done = false,
    attempt = control.pass_span.attempt + 1
"""
_WALK = """
UPDATE control.pass_span SET attempt = attempt + 1, updated_at = clock_timestamp()
WHERE pass_id = $1 AND number = $2 RETURNING *
"""
_ADVANCE = """
WITH mine AS (
    UPDATE control.pass_span SET after_key = $4::text, done = $4 IS NULL, updated_at = clock_timestamp()
    WHERE pass_id = $1 AND number = $2 AND attempt = $3 RETURNING pass_id)
UPDATE control.pass p SET rows_source = rows_source + $5, rows_target = rows_target + $6, moved = moved + $7,
       chunks = chunks + 1, updated_at = clock_timestamp()
FROM mine WHERE p.id = mine.pass_id
RETURNING rows_source, rows_target, chunks, rows_estimated,
          extract(epoch FROM clock_timestamp() - started_at)::float8 AS seconds
"""
_CONFIRM = """
UPDATE control.pass_candidate p SET confirmed = true, round = $4, columns = c.columns::jsonb
FROM unnest($2::text[], $3::text[]) AS c(key_id, columns) WHERE p.pass_id = $1 AND p.key_id = c.key_id
"""
_CANDIDATES = """
SELECT key_id, key_json, source_hash, source_xmin, target_hash, target_xmin, confirmed
FROM control.pass_candidate WHERE pass_id = $1 AND NOT confirmed AND round < $2 AND key_id > $3 ORDER BY key_id LIMIT $4
"""
#: `pass_candidate` holds kinds as the absence of hashes; the last key of the batch is returned.
_PUBLISH = """
WITH batch AS (
    SELECT * FROM control.pass_candidate WHERE pass_id = $1 AND key_id > $4 ORDER BY key_id LIMIT $5),
published AS (
    INSERT INTO control.difference
           (report_id, table_name, key_json, kind, source_hash, target_hash, confirmed, columns)
    SELECT $2, $3, key_json, CASE WHEN target_hash IS NULL THEN 'missing' WHEN source_hash IS NULL THEN 'extra'
                             ELSE 'mismatched' END,
           source_hash, target_hash, confirmed,
           CASE WHEN source_hash IS NULL OR target_hash IS NULL THEN '[]' ELSE columns END
    FROM batch ON CONFLICT (report_id, table_name, key_json) DO NOTHING)
SELECT max(key_id) FROM batch
"""
_COUNTS = """
SELECT count(*) FILTER (WHERE confirmed AND target_hash IS NULL) AS missing,
       count(*) FILTER (WHERE confirmed AND source_hash IS NULL) AS extra,
       count(*) FILTER (WHERE confirmed AND source_hash IS NOT NULL AND target_hash IS NOT NULL) AS mismatched,
       count(*) FILTER (WHERE NOT confirmed) AS unsettled
FROM control.pass_candidate WHERE pass_id = $1
"""


@dataclass(frozen=True)
class Counts:
    """Confirmed differences by kind, and the rows that did not settle."""

    missing: int
    extra: int
    mismatched: int
    unsettled: int

    @property
    def confirmed(self) -> int:
        return self.missing + self.extra + self.mismatched


@dataclass(frozen=True)
class StoredCandidate:
    """A candidate as it was kept at its last look; `id` names it in the control database."""

    id: str
    key: Key
    source: Look
    target: Look
    confirmed: bool

    @classmethod
    def read(cls, row: asyncpg.Record) -> "StoredCandidate":
        return cls(
            row["key_id"],
            key_from_json(row["key_json"]),
            Look(row["source_hash"], row["source_xmin"]),
            Look(row["target_hash"], row["target_xmin"]),
            row["confirmed"],
        )


@dataclass
class PassState:
    """One pass of one table, owned by this run until another one raises `attempt`."""

    control: Control
    row: asyncpg.Record

    @classmethod
    async def open(
        cls, control: Control, *, pass_id: str, migration: str, service: str, table: str, direction: str,
        plan_hash: str, positions: tuple[str, str], rows_estimated: int,
    ) -> "PassState":  # fmt: skip
        """A new pass, or the one of that id where it stands; an older run of it is fenced off."""
        async with control.transaction() as connection:
            await connection.execute(_TIDY, migration, service, table, pass_id)
            row = await connection.fetchrow(
                _OPEN, pass_id, migration, service, table, direction, plan_hash, secrets.randbits(63), *positions,
                rows_estimated,
            )  # fmt: skip
            assert row is not None
        return cls(control, row)

    @property
    def id(self) -> str:
        return str(self.row["id"])

    async def cut(self, spans: Sequence[Span]) -> None:
        """The pass consists of these spans, of which none is walked yet."""
        async with self.control.transaction() as connection:
            await self._require_mine(connection)
            await connection.execute(_CUT, self.id, self.row["attempt"], [span.json for span in spans])

    async def spans(self) -> dict[int, tuple[Span, bool]]:
        """The spans by their number, each with whether it was walked to its end."""
        rows = await self.control.fetch(
            "SELECT number, span, done FROM control.pass_span WHERE pass_id = $1 ORDER BY number", self.id
        )
        return {row["number"]: (Span.read(row["span"]), row["done"]) for row in rows}

    async def totals(self) -> tuple[int, int]:
        """Rows of source and sink that were walked so far."""
        row = await self.control.fetchrow("SELECT rows_source, rows_target FROM control.pass WHERE id = $1", self.id)
        if row is None:
            raise self._stale()
        return row["rows_source"], row["rows_target"]

    async def next_round(self) -> int:
        """The number of the look that begins now; survives a kill, so that no look counts twice."""
        number = await self.control.fetchval(
            "UPDATE control.pass SET round = round + 1, updated_at = clock_timestamp() "
            "WHERE id = $1 AND attempt = $2 RETURNING round",
            self.id,
            self.row["attempt"],
        )
        if number is None:
            raise self._stale()
        return int(number)

    async def candidates(self, before_round: int, after_id: str) -> list[StoredCandidate]:
        """The next batch that is neither confirmed nor looked at in this round."""
        rows = await self.control.fetch(_CANDIDATES, self.id, before_round, after_id, BATCH)
        return [StoredCandidate.read(row) for row in rows]

    async def settle(
        self,
        equal: Iterable[str],
        confirmed: Mapping[str, Sequence[str]],
        moving: Sequence[Candidate],
        looked: int,
    ) -> None:
        """The outcome of one look at a batch, at once; `confirmed` with the columns that differ."""
        async with self.control.transaction() as connection:
            await self._require_mine(connection)
            await connection.execute(
                "DELETE FROM control.pass_candidate WHERE pass_id = $1 AND key_id = ANY($2)", self.id, list(equal)
            )
            names = [json.dumps(columns) for columns in confirmed.values()]
            await connection.execute(_CONFIRM, self.id, list(confirmed), names, looked)
            await _keep(connection, self.id, moving, looked)

    async def publish(self, report_id: int) -> None:
        """All that is left, confirmed or not, stands beside the report from here on. Run again, nothing changes."""
        after: str | None = ""
        while after is not None:
            after = await self.control.fetchval(_PUBLISH, self.id, report_id, self.row["table_name"], after, PUBLISHED)

    async def counts(self) -> Counts:
        row = await self.control.fetchrow(_COUNTS, self.id)
        assert row is not None
        return Counts(**dict(row))

    async def clock(self) -> tuple[datetime, float, int]:
        """Now, the milliseconds since the pass began, both by the control database's clock, and the bytes moved."""
        row = await self.control.fetchrow(
            "SELECT clock_timestamp() AS now, extract(epoch FROM clock_timestamp() - started_at) * 1000 AS duration, "
            "moved FROM control.pass WHERE id = $1",
            self.id,
        )
        assert row is not None
        return row["now"], float(row["duration"]), row["moved"]

    async def finish(self, report_id: int) -> None:
        """From here on the report counts: it was recorded as incomplete until all its keys stood beside it."""
        async with self.control.transaction() as connection:
            await self._require_mine(connection)
            await connection.execute("UPDATE control.report SET complete = true WHERE id = $1", report_id)
            await connection.execute(
                "UPDATE control.pass SET report_id = $2, updated_at = clock_timestamp() WHERE id = $1",
                self.id,
                report_id,
            )
            await connection.execute("DELETE FROM control.pass_candidate WHERE pass_id = $1", self.id)

    async def finished_report(self) -> TableReport | None:
        """The report of a pass that had been finished by an earlier run."""
        if self.row["report_id"] is None:
            return None
        text = await self.control.fetchval(
            "SELECT (to_jsonb(r) || jsonb_build_object('table', r.table_name))::text "
            "FROM control.report r WHERE id = $1",
            self.row["report_id"],
        )
        return TableReport.model_validate_json(text)

    async def _require_mine(self, connection: Connection) -> None:
        if not await connection.fetchval(_MINE, self.id, self.row["attempt"]):
            raise self._stale()

    def _stale(self) -> StaleAttempt:
        return StaleAttempt(f"pass {self.id} over table {self.row['table_name']}: a newer run has taken it over")


@dataclass(frozen=True)
class Walked:
    """A pass after one more chunk of one of its spans: rows of both sides, chunks, seconds since the pass began."""

    rows_source: int
    rows_target: int
    chunks: int
    rows_estimated: int
    seconds: float


@dataclass
class SpanState:
    """One span of a pass, walked by this run until another one raises its `attempt`."""

    control: Control
    #: The pass's row: its seed, its direction, its positions.
    whole: asyncpg.Record
    row: asyncpg.Record

    @classmethod
    async def open(cls, control: Control, pass_id: str, number: int) -> "SpanState":
        """The span where it stands; an older walk of it is fenced off. Raises StaleAttempt where the pass is gone."""
        async with control.transaction() as connection:
            row = await connection.fetchrow(_WALK, pass_id, number)
            whole = await connection.fetchrow("SELECT * FROM control.pass WHERE id = $1", pass_id)
        if row is None or whole is None:
            raise StaleAttempt(f"pass {pass_id}, span {number}: nobody keeps the pass any more")
        return cls(control, whole, row)

    @property
    def span(self) -> Span:
        return Span.read(self.row["span"])

    @property
    def after(self) -> str | None:
        """Where a killed walk of this span stood (see `ranges.Chunk.after`)."""
        text: str | None = self.row["after_key"]
        return text

    @property
    def _mine(self) -> tuple[str, int, int]:
        return self.row["pass_id"], self.row["number"], self.row["attempt"]

    async def spill(self, candidates: Sequence[Candidate]) -> None:
        """Keeps candidates; those found again are overwritten with the newer look."""
        async with self.control.transaction() as connection:
            if not await connection.fetchval(_SPAN_MINE, *self._mine):
                raise self._stale()
            await _keep(connection, self.row["pass_id"], candidates, 0)

    async def advance(self, after: str | None, rows_source: int, rows_target: int, moved: int) -> Walked:
        """A part is finished, and a resumed walk goes on after it; None: it was the span's last one."""
        row = await self.control.fetchrow(_ADVANCE, *self._mine, after, rows_source, rows_target, moved)
        if row is None:
            raise self._stale()
        return Walked(**dict(row))

    def _stale(self) -> StaleAttempt:
        return StaleAttempt(f"pass {self.row['pass_id']}, span {self.row['number']}: a newer walk has taken it over")


async def _keep(connection: Connection, pass_id: str, candidates: Sequence[Candidate], looked: int) -> None:
    for start in range(0, len(candidates), BATCH):
        part = candidates[start : start + BATCH]
        texts = [key_json(c.key) for c in part]
        await connection.execute(
            _KEEP, pass_id, looked, [key_id(t) for t in texts], texts,
            [c.source.digest for c in part], [c.source.xmin for c in part],
            [c.target.digest for c in part], [c.target.xmin for c in part],
        )  # fmt: skip
