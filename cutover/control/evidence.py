"""Evidence: what a gate measured, under a short code that a person can repeat in an approval.

`facts` holds plain JSON; numbers that count for or against live in `facts["measures"]`, each of which is worse when
it is higher. Rules:

* A code stands for (plan, service, gate, facts without times of day). A measure of time or size enters in classes
  (a power of two of a second or a MiB), so that two looks at the same state give one code.
* Evidence is worse than what was approved if any measure is higher beyond its tolerance: none for counts and rates;
  20 % and half a second for `…_seconds`; 20 % and 50 ms for `…_ms`; 20 % and 1 MiB for `…_bytes`. A measure that can
  no longer be read is worse (invariant 6).
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any

import asyncpg

from cutover.control import audit, documents
from cutover.control.audit import Connection, Entry
from cutover.control.database import Control

#: Name's end → (share, absolute) by which a measure may be higher without being worse.
TOLERANCES = {"_seconds": (0.2, 0.5), "_ms": (0.2, 50.0), "_bytes": (0.2, float(1 << 20))}
#: Name's end → the size of the first class in a code.
_CLASSES = {"_seconds": 1.0, "_ms": 1000.0, "_bytes": float(1 << 20)}
_SHORTEST = 4


@dataclass(frozen=True)
class Evidence:
    """What was measured. `code`, `at`, `age_seconds` and `id` are set where it was read back."""

    migration: str
    service: str | None
    gate: str
    plan_hash: str
    facts: Mapping[str, Any]
    ok: bool
    code: str = ""
    at: datetime | None = None
    #: By the control database's clock, at the moment it was read.
    age_seconds: float = 0.0
    id: int = field(default=0, compare=False)

    @property
    def measures(self) -> Mapping[str, Any]:
        found = self.facts.get("measures", {})
        return found if isinstance(found, Mapping) else {}


def digest(evidence: Evidence) -> str:
    """sha256 hex of what the code stands for."""
    what = [evidence.plan_hash, evidence.service or "", evidence.gate, evidence.ok, _timeless(evidence.facts)]
    text = json.dumps(what, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def spelled(digest_hex: str) -> str:
    """The digest in lower-case base32 (letters and 2 to 7); a code is its beginning."""
    return base64.b32encode(bytes.fromhex(digest_hex)).decode().lower().rstrip("=")


def worse(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether facts `new` are worse than facts `old`, by the rule above."""
    before, after = old.get("measures") or {}, new.get("measures") or {}
    for name in before.keys() | after.keys():
        was, now = before.get(name, 0), after.get(name)
        if was is None:
            continue  # it was approved without being known; knowing it now is not worse
        if not _number(now) or not _number(was):
            return True  # a measure that cannot be read, or compared, counts against
        share, absolute = next((limits for end, limits in TOLERANCES.items() if name.endswith(end)), (0.0, 0.0))
        if now > was * (1 + share) + absolute:
            return True
    return False


async def record(control: Control, evidence: Evidence, *, actor: str = "gate") -> str:
    """Store a measurement; its code. Equal facts under the same plan give the same code."""
    full = digest(evidence)
    async with control.transaction() as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 7239100003))", evidence.migration)
        code = await _code(connection, evidence.migration, full)
        await connection.execute(
            "INSERT INTO control.evidence (migration, service, gate, plan_hash, digest, code, facts, ok)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8)",
            evidence.migration,
            evidence.service or "",
            evidence.gate,
            evidence.plan_hash,
            full,
            code,
            documents.dumps(evidence.facts),
            evidence.ok,
        )
        detail = {"gate": evidence.gate, "code": code, "ok": evidence.ok, "measures": dict(evidence.measures)}
        await audit.append(connection, Entry(actor, "evidence", evidence.migration, evidence.service, detail))
    return code


async def get(control: Control, migration: str, code: str) -> Evidence | None:
    """The newest measurement under that code (in any case), or None."""
    row = await control.fetchrow(
        f"{SELECT} WHERE migration = $1 AND code = $2 ORDER BY id DESC LIMIT 1", migration, normal(code)
    )
    return evidence_from(row) if row else None


async def latest(control: Control, migration: str, service: str | None, gate: str) -> Evidence | None:
    """The newest measurement of a gate, or None."""
    row = await control.fetchrow(
        f"{SELECT} WHERE migration = $1 AND service = $2 AND gate = $3 ORDER BY id DESC LIMIT 1",
        migration,
        service or "",
        gate,
    )
    return evidence_from(row) if row else None


def normal(code: str) -> str:
    """The code as it is stored, whatever way it was typed."""
    return code.strip().lower()


#: The columns of `evidence_from`; a WHERE follows.
SELECT = (
    "SELECT id, migration, service, gate, plan_hash, code, facts::text AS facts, ok, at,"
    " extract(epoch FROM clock_timestamp() - at)::float8 AS age FROM control.evidence"
)


def evidence_from(row: asyncpg.Record) -> Evidence:
    """The dataclass of a row."""
    return Evidence(
        migration=row["migration"],
        service=row["service"] or None,
        gate=row["gate"],
        plan_hash=row["plan_hash"],
        facts=documents.loads(row["facts"]),
        ok=row["ok"],
        code=row["code"],
        at=row["at"],
        age_seconds=row["age"],
        id=row["id"],
    )


async def _code(connection: Connection, migration: str, full: str) -> str:
    """The code of that digest: the one it has, else the shortest beginning that no other digest has."""
    known: str | None = await connection.fetchval(
        "SELECT code FROM control.evidence WHERE migration = $1 AND digest = $2 LIMIT 1", migration, full
    )
    if known:
        return known
    text = spelled(full)
    for length in range(_SHORTEST, len(text) + 1):
        code = text[:length]
        if not await connection.fetchval(
            "SELECT 1 FROM control.evidence WHERE migration = $1 AND code = $2 LIMIT 1", migration, code
        ):
            return code
    return text


def _timeless(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts without times of day, their measures in classes."""
    kept: dict[str, Any] = {}
    for key, value in facts.items():
        if key == "at" or key.endswith("_at") or isinstance(value, datetime | date | time):
            continue
        if key == "measures" and isinstance(value, Mapping):
            kept[key] = {name: _class(name, number) for name, number in value.items()}
        elif isinstance(value, Mapping):
            kept[key] = _timeless(value)
        else:
            kept[key] = value
    return documents.document(kept)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _class(name: str, value: Any) -> Any:
    unit = next((size for end, size in _CLASSES.items() if name.endswith(end)), None)
    if unit is None or not _number(value):
        return value
    return max(0, math.ceil(math.log2(value / unit))) if value > 0 else 0
