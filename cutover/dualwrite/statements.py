"""Whether a statement writes, by its first words: a guess that errs on the side of "writes"."""

import re

_LEADING = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/|\()+", re.DOTALL)
_WRITES = re.compile(
    r"(insert|update|delete|merge|call|truncate|copy|do|create|alter|drop|lock|refresh|import|comment|grant|revoke)\b",
    re.IGNORECASE,
)
_WITH = re.compile(r"with\b", re.IGNORECASE)
_WITH_WORDS = re.compile(r"with\b(\s+recursive\b)?", re.IGNORECASE)
_TAKES_WITH = re.compile(r"(insert|update|delete|select|values)\b", re.IGNORECASE)
_CTE_WRITES = re.compile(r"[()]\s*(insert\s+into|update|delete\s+from|merge\s+into)\b", re.IGNORECASE)


def writes(sql: str) -> bool:
    """True for INSERT, UPDATE, DELETE, MERGE, CALL, DDL, and a WITH that holds one of them.

    A function with side effects called by SELECT is not seen: say `write=True` for it.
    """
    if leading := _LEADING.match(sql):
        sql = sql[leading.end() :]
    if _WITH.match(sql):
        return bool(_CTE_WRITES.search(sql))
    return bool(_WRITES.match(sql))


def with_part(sql: str, part: str, *, arguments: int) -> str | None:
    """The statement with one more part in its WITH clause; None where there may be more than one, or it takes none.

    `part` may use the parameter after the statement's own `arguments`.
    """
    if not arguments and ";" in sql.rstrip().rstrip(";"):
        return None  # several statements in one text
    leading = _LEADING.match(sql)
    start = leading.end() if leading else 0
    if "(" in sql[:start]:
        return None
    if words := _WITH_WORDS.match(sql, start):
        return f"{sql[: words.end()]} {part},{sql[words.end() :]}"
    return f"WITH {part} {sql}" if _TAKES_WITH.match(sql, start) else None
