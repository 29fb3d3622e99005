"""How a table is cut into spans, each walked by itself, so that several workers can share a large one."""

import json
from dataclasses import dataclass

import asyncpg

from cutover.postgres.keys import Key
from cutover.postgres.sampling import parts
from cutover.postgres.shapes import Shape

#: Rows of a span, about: some seconds of work, and a thousand million rows stay under 256 spans.
SPAN_ROWS = 5_000_000
#: Rows of a share of a table that is not read in order: each share costs a scan.
SHARE_ROWS = 2_000_000
#: Each span costs a few events of the run's history.
MOST_SPANS = 256


@dataclass(frozen=True)
class Span:
    """Rows with `low < key <= high` in the order of the key's index, or share number `share` of `of` by its hash."""

    ordered: bool
    low: Key | None = None
    high: Key | None = None
    share: int = 0
    of: int = 1

    @property
    def json(self) -> str:
        if self.ordered:
            return json.dumps({"low": self.low, "high": self.high}, ensure_ascii=False)
        return json.dumps({"share": self.share, "of": self.of})

    @classmethod
    def read(cls, text: str) -> "Span":
        data = json.loads(text)
        if "of" in data:
            return cls(False, share=data["share"], of=data["of"])
        low, high = (tuple(bound) if bound else None for bound in (data["low"], data["high"]))
        return cls(True, low, high)


async def cut(source: asyncpg.Connection, shape: Shape, rows: int) -> list[Span]:
    """The spans of a table of about that many rows; together they hold every key there can be, each once."""
    if not shape.ordered:
        count = 1
        while rows / count > SHARE_ROWS and count < MOST_SPANS:
            count *= 2
        return [Span(False, share=share, of=count) for share in range(count)]
    count = min(MOST_SPANS, max(1, -(-rows // SPAN_ROWS)))
    return [Span(True, low, high) for low, high in await parts(source, shape, count)]
