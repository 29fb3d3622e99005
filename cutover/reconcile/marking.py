"""Keys that somebody has found to differ, outside of a pass: they count as changed until they are seen equal."""

from collections.abc import Sequence

from cutover.control.database import Control
from cutover.postgres.databases import Direction
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import Key, key_id, key_json
from cutover.reconcile.changed import KEEP


async def mark(
    control: Control, migration: str, service: str, direction: Direction, table: TableName, keys: Sequence[Key]
) -> None:
    """The keys are compared with the next verification, and close the switch until then."""
    texts = sorted(map(key_json, keys))
    await control.execute(KEEP, migration, service, direction, str(table), [key_id(text) for text in texts], texts)
