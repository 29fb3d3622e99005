"""Versioned migrations of the control database: files in order, once each, checksums verified.

A file is `NNNN_name.sql`; numbers rise strictly, gaps are allowed. All pending files are applied in one
transaction under an advisory lock, so that two processes at once, or one killed in the middle, leave the
schema either before or after them.
"""

import hashlib
import itertools
import re
from dataclasses import dataclass
from importlib import resources

import asyncpg

from cutover.errors import ConfigError, Conflict

_FILE = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")
_LOCK = 7239100001

_BOOTSTRAP = """
CREATE SCHEMA IF NOT EXISTS control;
CREATE TABLE IF NOT EXISTS control.schema_migration (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE control.schema_migration IS 'Which migration files of the control schema have been applied';
"""


@dataclass(frozen=True)
class MigrationFile:
    """One file: its number, name and text."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """sha256 of the text; line ends do not count, for a checkout may change them."""
        return hashlib.sha256(self.sql.replace("\r\n", "\n").encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.number:04d}_{self.name}.sql"


def shipped() -> list[MigrationFile]:
    """The files that come with this version, in order. Raises ConfigError where two have one number."""
    files = []
    for entry in resources.files("cutover.control").joinpath("migrations").iterdir():
        if entry.name.endswith(".sql"):
            match = _FILE.match(entry.name)
            if not match:
                raise ConfigError(f"migration file {entry.name!r}: the name must be NNNN_name.sql")
            files.append(MigrationFile(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    files.sort(key=lambda file: file.number)
    for first, second in itertools.pairwise(files):
        if first.number == second.number:
            raise ConfigError(
                f"migration files {first} and {second} have the same number: give one of them the next free one"
            )
    return files


def pending(files: list[MigrationFile], applied: dict[int, tuple[str, str]]) -> list[MigrationFile]:
    """Files still to apply. `applied` maps a number to (name, checksum) as the database has them.

    Raises Conflict where the database and the files do not tell the same story.
    """
    known = {file.number: file for file in files}
    for number, (name, checksum) in sorted(applied.items()):
        file = known.get(number)
        if file is None:
            raise Conflict(
                f"the control database has migration {number:04d}_{name}, which this version of cutover does not know: "
                "run the newer version of cutover that applied it"
            )
        if file.checksum != checksum:
            raise Conflict(
                f"migration {file} was changed after it had been applied to the control database: "
                "put the file back as it was, and make the change in a new file with the next number"
            )
    newest = max(applied, default=0)
    todo = [file for file in files if file.number not in applied]
    for file in todo:
        if file.number < newest:
            raise Conflict(
                f"migration {file} is older than {newest:04d}, which the control database already has: "
                f"give the file a number above {newest:04d}"
            )
    return todo


async def migrate(connection: asyncpg.Connection, files: list[MigrationFile] | None = None) -> list[str]:
    """Bring the schema up to date; the names of the files that were applied just now.

    Raises Conflict (see `pending`) and changes nothing then.
    """
    files = shipped() if files is None else files
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute("SET LOCAL client_min_messages = warning")
        await connection.execute(_BOOTSTRAP)
        rows = await connection.fetch("SELECT number, name, checksum FROM control.schema_migration")
        todo = pending(files, {row["number"]: (row["name"], row["checksum"]) for row in rows})
        for file in todo:
            try:
                await connection.execute(file.sql)
            except asyncpg.PostgresError as e:
                raise ConfigError(f"migration {file} of the control database failed: {e}") from None
            await connection.execute(
                "INSERT INTO control.schema_migration (number, name, checksum) VALUES ($1, $2, $3)",
                file.number,
                file.name,
                file.checksum,
            )
    return [str(file) for file in todo]
