"""Which reads are in a share: sticky by key, so that a key that has moved stays as the share grows.

docs/flags.md tells it to libraries in other languages: what is computed here does not change any more.
"""

import hashlib
import random


def bucket(service: str, key: object = None) -> int:
    """0 to 99: the read goes to the new side at every percentage above it. Without a key it is drawn anew each time.

    Not the same for all services, so that no key is the first one everywhere.
    """
    if key is None:
        return random.randrange(100)
    return int.from_bytes(hashlib.sha256(f"{service}/{key}".encode()).digest()[:4], "big") % 100
