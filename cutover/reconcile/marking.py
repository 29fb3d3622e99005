"""Keys that count as changed until they are seen equal: how they are noted, also those found to differ elsewhere."""

from collections.abc import Iterable, Sequence

from cutover.control import switches
from cutover.control.database import Control
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
INSERT INTO control.changed_table (migration, service, direction, table_name, whole_number)
SELECT $1, $2, $3, t, nextval('control.change_number') FROM unnest($4::text[]) AS t
ON CONFLICT (migration, service, direction, table_name) DO UPDATE
SET whole_number = EXCLUDED.whole_number, verified_at = NULL
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
