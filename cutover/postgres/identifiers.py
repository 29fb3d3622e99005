"""Identifiers of PostgreSQL: quoted here, and nowhere else put into SQL text.

Rule: PostgreSQL manual, 4.1.1 "Identifiers and Key Words": a quoted identifier may hold any character
but NUL, a double quote is doubled, and more than 63 bytes are truncated by the server.
"""

from dataclasses import dataclass

from cutover.errors import ConfigError

MAX_BYTES = 63


def quote(name: str) -> str:
    """The identifier in double quotes, ready for SQL text.

    Raises ConfigError for a name that the server would refuse or silently shorten.
    """
    if not name:
        raise ConfigError("an identifier is empty")
    if "\x00" in name:
        raise ConfigError(f"identifier {name!r} holds a NUL byte")
    size = len(name.encode())
    if size > MAX_BYTES:
        raise ConfigError(f"identifier {name!r} has {size} bytes; PostgreSQL keeps {MAX_BYTES}")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str) -> str:
    """A string constant for the few utility statements that take no parameters (CREATE SUBSCRIPTION …)."""
    if "\x00" in value:
        raise ConfigError("a string constant holds a NUL byte")
    escaped = value.replace("'", "''")
    if "\\" in escaped:
        return " E'" + escaped.replace("\\", "\\\\") + "'"
    return "'" + escaped + "'"


@dataclass(frozen=True, order=True)
class TableName:
    """A table as a plan names it: `trades`, or `schema.trades`; without a schema it is in `public`."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "TableName":
        schema, dot, name = text.partition(".")
        return cls(schema, name) if dot else cls("public", text)

    @property
    def sql(self) -> str:
        """Quoted and qualified, ready for SQL text."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    def __str__(self) -> str:
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"


def columns_sql(names: tuple[str, ...] | list[str]) -> str:
    """A comma-separated list of quoted columns."""
    return ", ".join(quote(name) for name in names)
