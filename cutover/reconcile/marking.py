"""Keys that count as changed until they are seen equal: how they are noted, also those found to differ elsewhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cutover.control import switches
from cutover.control.database import Control
from cutover.control.reports import TableReport
from cutover.postgres.databases import Direction
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import Key, key_id, key_json

#: Of all tables in one statement: what is noted inside the fence costs one round trip.
KEEP = """
INSERT INTO control.changed_key AS k (migration, service, direction, table_name, key_id, key_json)
SELECT $1, $2, $3, * FROM unnest($4::text[], $5::text[], $6::text[])
ON CONFLICT (migration, service, direction, table_name, key_id) DO UPDATE
SET number = greatest(k.number, EXCLUDED.number)
"""
#: Every table is dirty as a whole: its changes are followed from now on.
RESET = """
INSERT INTO control.changed_table (migration, service, direction, table_name, whole_number, publication)
SELECT $1, $2, $3, t, nextval('control.change_number'), $5 FROM unnest($4::text[]) AS t
ON CONFLICT (migration, service, direction, table_name) DO UPDATE
SET whole_number = EXCLUDED.whole_number, verified_at = NULL, publication = EXCLUDED.publication
"""
#: How many tables are followed, and whether by another publication than that.
_FOLLOWED = """
SELECT count(*) FILTER (WHERE table_name = ANY($4)) AS tables, coalesce(bool_or(publication <> $5), false) AS other
FROM control.changed_table WHERE migration = $1 AND service = $2 AND direction = $3
"""
DIRTY = """
SELECT table_name, key_id, key_json, number FROM control.changed_key
WHERE migration = $1 AND service = $2 AND direction = $3 AND number > $4 ORDER BY number LIMIT $5
"""
CLEAR = """
DELETE FROM control.changed_key k USING unnest($4::text[], $5::text[], $6::bigint[]) AS c(table_name, key_id, number)
WHERE k.migration = $1 AND k.service = $2 AND k.direction = $3
  AND k.table_name = c.table_name AND k.key_id = c.key_id AND k.number = c.number
"""
WHOLE = """
UPDATE control.changed_table SET whole_number = nextval('control.change_number')
WHERE migration = $1 AND service = $2 AND direction = $3 AND table_name = ANY($4)
"""
#: Where the switch is another one by now there is nothing held, and nothing changed.
ADOPT = f"""
WITH held AS ({switches.HELD}), adopted AS (
    UPDATE control.changed_table SET whole_number = NULL, verified_at = clock_timestamp()
    WHERE migration = $1 AND service = $2 AND direction = $6 AND EXISTS (SELECT FROM held)
)
SELECT EXISTS (SELECT FROM held)
"""  # noqa: S608 (constant text)


@dataclass(frozen=True)
class Followed:
    """What is noted of a record: how many of the tables it follows, and whether its publication was made anew since."""

    tables: int
    torn: bool


async def followed(
    control: Control, who: tuple[str, str, str], tables: Sequence[TableName], publication: int | None
) -> Followed:
    """`publication`: the oid of now, None where there is none."""
    names = [str(table) for table in tables]
    row = await control.fetchrow(_FOLLOWED, *who, names, -1 if publication is None else publication)
    assert row is not None, "an aggregate has a row"
    return Followed(row["tables"], row["other"])


async def verified(control: Control, who: tuple[str, str, str], report: TableReport, batch: int) -> bool:
    """A full pass has ended: what changed before it began is no longer dirty; the keys it found differing are.

    False where the report proves nothing (incomplete, read from a replica, or not found as a pass).
    """
    async with control.transaction() as connection:
        mark = await connection.fetchval(
            "SELECT change_mark FROM control.pass WHERE report_id = $1 AND migration = $2 AND service = $3 "
            "AND direction = $4 AND table_name = $5",
            report.id,
            *who,
            report.table,
        )
        if mark is None or not report.complete or report.replica:
            return False
        await connection.execute(
            "DELETE FROM control.changed_key WHERE migration = $1 AND service = $2 AND direction = $3 "
            "AND table_name = $4 AND number <= $5",
            *who,
            report.table,
            mark,
        )
        await connection.execute(
            "UPDATE control.changed_table SET whole_number = NULL, verified_at = clock_timestamp() "
            "WHERE migration = $1 AND service = $2 AND direction = $3 AND table_name = $4 AND whole_number <= $5",
            *who,
            report.table,
            mark,
        )
        rows = connection.cursor("SELECT key_json FROM control.difference WHERE report_id = $1", report.id)
        keys: list[tuple[str, str]] = []
        async for row in rows:
            keys.append((report.table, row["key_json"]))
            if len(keys) >= batch:
                await connection.execute(KEEP, *who, *columns(keys))
                keys = []
        await connection.execute(KEEP, *who, *columns(keys))
    return True


def columns(keys: Iterable[tuple[TableName | str, str]]) -> tuple[list[str], list[str], list[str]]:
    """Tables and keys (as JSON) in the form of `KEEP`'s last parameters, in one order for all who note them."""
    ordered = sorted((str(table), text) for table, text in keys)
    return [table for table, _ in ordered], [key_id(text) for _, text in ordered], [text for _, text in ordered]


async def mark(
    control: Control, migration: str, service: str, direction: Direction, table: TableName, keys: Sequence[Key]
) -> None:
    """The keys are compared with the next verification, and close the switch until then."""
    marked = columns((table, key_json(key)) for key in keys)
    await control.execute(KEEP, migration, service, direction, *marked)
