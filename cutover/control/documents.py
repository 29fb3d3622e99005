"""JSON as the control database holds it: made from Python values here, with secrets cut out.

jsonb keeps neither NUL characters nor lone surrogates, and no infinity: they are replaced, so that an
odd text never costs the audit row that holds it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_jsonable_python

_URL_SECRET = re.compile(r"\b([a-z][a-z0-9+.-]*)://[^\s\"']*", re.IGNORECASE)
_KEY_SECRET = re.compile(r"\b(password|passwd|sslpassword|passfile)\s*=\s*('[^']*'|\S+)", re.IGNORECASE)


def scrub(text: str) -> str:
    """The text without connection strings and passwords, and without what jsonb cannot hold.

    Web addresses stay: only schemes of databases and addresses with a user part are cut.
    """

    def address(match: re.Match[str]) -> str:
        scheme = match.group(1).lower()
        if scheme.startswith(("postgres", "kafka", "amqp", "redis")) or "@" in match.group(0):
            return f"{match.group(1)}://***"
        return match.group(0)

    text = _KEY_SECRET.sub(r"\1=***", _URL_SECRET.sub(address, text))
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {scrub(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_clean(item) for item in items]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # NaN and infinities have no JSON; null reads as "not known", which every gate counts as a breach.
        return value if value - value == 0 else None
    return _clean(to_jsonable_python(value, inf_nan_mode="constants"))


def document(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as plain JSON values, scrubbed. Takes what pydantic can serialise (datetime, timedelta, models)."""
    return {scrub(str(key)): _clean(item) for key, item in values.items()}


def dumps(values: Mapping[str, Any]) -> str:
    """Scrubbed JSON text with sorted keys, for a jsonb parameter and for hashing."""
    return json.dumps(document(values), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def loads(text: str | None) -> dict[str, Any]:
    """The mapping in a json or jsonb column; NULL is an empty one."""
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {"value": value}
