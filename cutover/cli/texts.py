"""Values of other people on a terminal: nothing in them may move the cursor or change a colour."""

import json
from datetime import datetime

from rich.text import Text


def printable(text: str) -> str:
    """The text with every character that does not print written as its escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def cell(text: str, style: str = "") -> Text:
    """A cell of a table: as it stands and no markup, for keys and names may hold square brackets."""
    return Text(printable(text), style=style)


def key_text(key_json: str) -> str:
    """A key as people read it: its values, a composite one's with commas between them."""
    return ", ".join(str(part) for part in json.loads(key_json))


def moment(value: datetime) -> str:
    """A time, to the second."""
    return value.isoformat(sep=" ", timespec="seconds")


def span(seconds: float) -> str:
    """A length of time in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
