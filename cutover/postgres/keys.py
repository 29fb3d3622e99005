"""Keys of rows as they travel between sides and stand in the control database: the text of each of their values."""

import hashlib
import json

#: A key's values as text, in the key's column order.
Key = tuple[str, ...]


def key_json(key: Key) -> str:
    """The key as the control database holds it: a JSON array of texts."""
    return json.dumps(key, ensure_ascii=False, separators=(",", ":"))


def key_from_json(text: str) -> Key:
    return tuple(json.loads(text))


def key_id(text: str) -> str:
    """A short name for a key's JSON, which itself may be too long for an index."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
