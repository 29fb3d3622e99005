"""The kinds of values in a plan: durations, percentages, names. Each error says what would be right.

A value that may hold a secret by mistake (a DSN in the place of a database's name) is never repeated.
"""

import re
from collections.abc import Callable
from datetime import UTC, timedelta, tzinfo
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo
from pydantic_core import PydanticCustomError

from cutover.plan.durations import (
    LONGEST,
    RIGHT_DURATION,
    RIGHT_PERCENTAGE,
    format_duration,
    format_percentage,
    parse_duration,
    parse_percentage,
)

#: PostgreSQL manual, 4.1.1: NAMEDATALEN - 1. Longer names would be shortened silently.
MAX_BYTES = 63
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SECRET = re.compile(r"://|=|\bpassword\b", re.IGNORECASE)


def wrong(what: str, right: str) -> PydanticCustomError:
    """An error of a field: what is wrong, and what would be right."""
    return PydanticCustomError("plan", "{what}; {right}", {"what": what, "right": right})


def shown(value: object) -> str:
    """A value for a message: short, on one line, and not if it looks like a DSN or a password."""
    text = repr(value)
    if _SECRET.search(text):
        return "the value"
    return text if len(text) <= 60 else text[:57] + "…" + text[0]


def _duration(value: object) -> timedelta:
    if isinstance(value, str):
        try:
            value = parse_duration(value)
        except ValueError as error:
            raise wrong(f"{shown(value)} {error}", RIGHT_DURATION) from None
    if not isinstance(value, timedelta):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        raise wrong(f"{shown(value)} {'is a number without a unit' if number else 'is not a duration'}", RIGHT_DURATION)
    if not timedelta(0) <= value <= LONGEST:
        raise wrong("the duration is negative or longer than ten years", RIGHT_DURATION)
    return value


def _positive(value: timedelta) -> timedelta:
    if not value:
        raise wrong("a duration of zero has no meaning here", "write a duration longer than zero, as in 1s")
    return value


def _percentage(value: object, info: ValidationInfo) -> float:
    if isinstance(value, str):
        try:
            return parse_percentage(value)
        except ValueError as error:
            raise wrong(f"{shown(value)} {error}", RIGHT_PERCENTAGE) from None
    # In code a share is a float; in a file 0.1 could mean 10 % or 0.1 %, so there it needs its sign.
    from_file = bool(info.context)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"{shown(value)} is not a percentage", RIGHT_PERCENTAGE)
    if from_file:
        raise wrong(f"{shown(value)} is a number without %", f"{RIGHT_PERCENTAGE} (did you mean {value}%?)")
    if not 0 <= value <= 1e9:
        raise wrong(f"{shown(value)} is not a share", "give a float of at least 0; 1.0 is 100%")
    return float(value)


def _share(value: float) -> float:
    if value > 1:
        raise wrong("a rate cannot be more than 100%", "write a percentage from 0% to 100%")
    return value


def identifier(value: str) -> str:
    """A name that PostgreSQL keeps whole when it is quoted: any characters but NUL, at most 63 bytes."""
    if not value:
        raise wrong("the name is empty", "write the name as the catalog has it")
    if "\x00" in value:
        raise wrong("the name holds a NUL character", "PostgreSQL allows none; write the name as the catalog has it")
    size = len(value.encode(errors="replace"))
    if size > MAX_BYTES:
        raise wrong(
            f"the name {shown(value)} has {size} bytes",
            f"PostgreSQL keeps {MAX_BYTES} and drops the rest; write the name as the catalog has it",
        )
    return value


def _text(value: str) -> str:
    if "\x00" in value:
        raise wrong("the text holds a NUL character", "write text without it")
    return value


def _table(value: str) -> str:
    schema, dot, name = value.partition(".")
    if dot and not (schema and name):
        raise wrong(f"{shown(value)} lacks its {'table' if schema else 'schema'}", "write `table` or `schema.table`")
    for part in (schema, name) if dot else (value,):
        identifier(part)
    return value


def canonical(table: str) -> str:
    """One spelling for each table: `public.trades` and `trades` are the same."""
    return table.removeprefix("public.")


def _matching(pattern: str, thing: str, right: str) -> Callable[[str], str]:
    expression = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if not expression.fullmatch(value):
            raise wrong(f"{shown(value)} is not the name of {thing}", right)
        return value

    return check


def _database(value: str) -> str:
    if _SECRET.search(value):
        raise wrong(
            "this looks like a DSN, and a plan holds no secret",
            "write only a name, as in monolith, and put the DSN into CUTOVER_DSN_<NAME> in the environment",
        )
    return _DATABASE(value)


_DATABASE = _matching(
    "[A-Za-z][A-Za-z0-9_-]{0,62}",
    "a database",
    "write a name of letters, digits, `_` and `-` that begins with a letter; its DSN is read from CUTOVER_DSN_<NAME>",
)


def zone(name: str) -> tzinfo:
    """The time zone of that name; UTC is known even where the machine has no tz database (slim containers)."""
    return UTC if name == "UTC" else ZoneInfo(name)


def _zone(value: str) -> str:
    try:
        zone(value)
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError; "Europe" is a folder: OSError
        raise wrong(
            f"{shown(value)} is not a known time zone", "write a name of the tz database, as in UTC or Europe/Rome"
        ) from None
    return value


_AT = re.compile(r"([a-z]+)\s+(\d{1,2}):(\d{2})", re.ASCII)


def parse_at(text: str) -> tuple[int, int, int]:
    """`monday 09:00` as weekday (0 is Monday), hour, minute. Raises PydanticCustomError."""
    words = text.strip().lower()
    right = "write a weekday and a time of 24 hours, as in `monday 09:00`"
    found = _AT.fullmatch(words)
    if not found:
        day, _, hour = words.partition(" ")
        if day in WEEKDAYS and hour.strip().isdecimal() and int(hour) < 24:
            right = f"write `{day} {int(hour):02}:00`"
        raise wrong(f"{shown(text)} is not a weekday and a time", right)
    if found[1] not in WEEKDAYS:
        raise wrong(f"{found[1]!r} is not a weekday", f"write one of {', '.join(WEEKDAYS)} in full")
    hour_of_day, minute = int(found[2]), int(found[3])
    if hour_of_day > 23 or minute > 59:
        raise wrong(f"{shown(text)} has no such time of day", right)
    return WEEKDAYS.index(found[1]), hour_of_day, minute


def _at(value: str) -> str:
    day, hour, minute = parse_at(value)
    return f"{WEEKDAYS[day]} {hour:02}:{minute:02}"


#: A time that may be zero; text in files and JSON, `timedelta` in code.
Duration = Annotated[timedelta, BeforeValidator(_duration), PlainSerializer(format_duration, str, when_used="json")]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
#: A share without an upper limit (an increase by 300 %); 1.0 is 100 %.
Percentage = Annotated[float, BeforeValidator(_percentage), PlainSerializer(format_percentage, str, when_used="json")]
#: A share of a whole, 0 to 1.
Rate = Annotated[Percentage, AfterValidator(_share)]
#: Free text; PostgreSQL stores no NUL.
Text = Annotated[str, AfterValidator(_text)]
Identifier = Annotated[str, AfterValidator(identifier)]
TableKey = Annotated[str, AfterValidator(_table)]
DatabaseName = Annotated[str, AfterValidator(_database)]
TimeZone = Annotated[str, AfterValidator(_zone)]
At = Annotated[str, AfterValidator(_at)]
MigrationName = Annotated[
    str,
    AfterValidator(
        _matching(
            "[a-z][a-z0-9-]{0,39}",
            "a migration",
            "write at most 40 small letters, digits and `-` that begin with a letter, as in ai-trader",
        )
    ),
]
ServiceName = Annotated[
    str,
    AfterValidator(
        _matching(
            "[a-z][a-z0-9_]{0,39}",
            "a service",
            "write at most 40 small letters, digits and `_` that begin with a letter, as in trading_engine",
        )
    ),
]
TaskName = Annotated[
    str,
    AfterValidator(
        _matching(
            "[a-z][a-z0-9_]{0,62}",
            "a task",
            "write small letters, digits and `_` that begin with a letter, as in team_trained",
        )
    ),
]
