"""Whether a statement writes, by its first words: a guess that errs on the side of "writes"."""

import re

_LEADING = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/|\()+", re.DOTALL)
_WRITES = re.compile(
    r"(insert|update|delete|merge|call|truncate|copy|do|create|alter|drop|lock|refresh|import|comment|grant|revoke)\b",
    re.IGNORECASE,
)
_WITH = re.compile(r"with\b", re.IGNORECASE)
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
