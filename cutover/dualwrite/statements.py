"""Whether a statement writes, by its first words: a guess that errs on the side of "writes"."""

import re

#: What stands in front of a statement, where comments are not nested; and where there are none.
_LEADING = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/|\()+", re.DOTALL)
_BRACKETS = re.compile(r"[\s(]+")
#: What begins a comment, or a text in which none begins.
_OPENS = re.compile(r"""--|/\*|"|(?<![\w$])[eE]'|'|(?<![\w$])\$(?:[^\W\d]\w*)?\$""")
_COMMENT = re.compile(r"/\*|\*/")
_ESCAPED = re.compile(r"(?:[^\\']|\\.)*'", re.DOTALL)
_WRITES = re.compile(
    r"(insert|update|delete|merge|call|truncate|copy|do|create|alter|drop|lock|refresh|import|comment|grant|revoke)\b",
    re.IGNORECASE,
)
_WITH = re.compile(r"with\b", re.IGNORECASE)
_WITH_WORDS = re.compile(r"with\b(\s+recursive\b)?", re.IGNORECASE)
_TAKES_WITH = re.compile(r"(insert|update|delete|select|values)\b", re.IGNORECASE)
_PARAMETER = re.compile(r"\$(\d+)")
_MAY_COMMIT = re.compile(r"[\s(]*(call|do)\b", re.IGNORECASE)
_ENDS_TRANSACTION = re.compile(r";\s*(commit|end|rollback|abort|prepare\s+transaction)\b", re.IGNORECASE)
_CTE_WRITES = re.compile(r"[()]\s*(insert\s+into|update|delete\s+from|merge\s+into)\b", re.IGNORECASE)


def writes(sql: str) -> bool:
    """True for INSERT, UPDATE, DELETE, MERGE, CALL, DDL, and a WITH that holds one of them.

    A function with side effects called by SELECT is not seen: say `write=True` for it.
    """
    text = without_comments(sql)
    if leading := _BRACKETS.match(text):
        text = text[leading.end() :]
    if _WITH.match(text):
        # as it is, too: a server may be set so that a text ends elsewhere (`standard_conforming_strings`)
        return bool(_CTE_WRITES.search(text) or _CTE_WRITES.search(sql))
    return bool(_WRITES.match(text))


def may_commit(sql: str) -> bool:
    """Whether something may stand of a statement that failed: of CALL and DO, and of a text with a COMMIT in it.

    Inside a transaction they cannot commit.
    """
    text = without_comments(sql)
    return bool(_MAY_COMMIT.match(text) or _ENDS_TRANSACTION.search(text))


def without_comments(sql: str) -> str:
    """The statement with a blank for each comment; what looks like one inside of quotes stays."""
    if "--" not in sql and "/*" not in sql:
        return sql
    parts, at = [], 0
    while opening := _OPENS.search(sql, at):
        parts.append(sql[at : opening.start()])
        at = _end(sql, opening.group(), opening.end())
        parts.append(" " if opening.group() in ("--", "/*") else sql[opening.start() : at])
    return "".join([*parts, sql[at:]])


def _end(sql: str, opened: str, start: int) -> int:
    """Where that ends which was opened before `start`."""
    if opened == "/*":
        depth = 1
        for mark in _COMMENT.finditer(sql, start):
            depth += 1 if mark.group() == "/*" else -1
            if not depth:
                return mark.end()
        return len(sql)
    if len(opened) == 2 and opened.endswith("'"):  # E'…'
        text = _ESCAPED.match(sql, start)
        return text.end() if text else len(sql)
    closing = "\n" if opened == "--" else opened  # a doubled quote begins the next text at once
    found = sql.find(closing, start)
    return len(sql) if found < 0 else found + len(closing)


def with_part(sql: str, part: str, *, arguments: int) -> str | None:
    """The statement with one more part in its WITH clause; None where there may be more than one, or it takes none.

    `part` may use the parameter after the statement's own `arguments`.
    """
    if not arguments and ";" in sql.rstrip().rstrip(";"):
        return None  # several statements in one text
    if any(int(number) > arguments for number in _PARAMETER.findall(sql)):
        return None  # one argument is missing, and the part's own would take its place
    leading = _LEADING.match(sql)
    start = leading.end() if leading else 0
    if "(" in sql[:start]:
        return None
    if words := _WITH_WORDS.match(sql, start):
        if sql[words.end() :].lstrip().startswith(("--", "/*")):
            return None  # RECURSIVE may stand behind it
        return f"{sql[: words.end()]} {part},{sql[words.end() :]}"
    return f"WITH {part} {sql}" if _TAKES_WITH.match(sql, start) else None
