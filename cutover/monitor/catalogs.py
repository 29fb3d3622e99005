"""Whether anybody has changed the schema since it was taken: compared at every gate and pass.

What cutover itself does is no change: its triggers, publications, the foreign keys that cross services, and the
renamed tables of a service that cleanup has taken over.
"""

from dataclasses import dataclass

from cutover.control import fingerprints, stages
from cutover.control.database import Control
from cutover.errors import GateClosed
from cutover.postgres.databases import Pair, Side
from cutover.postgres.fingerprint import Fingerprint, changes, fingerprint

#: Stages at which the machinery is gone: nothing is compared, switched or fenced any more.
TAKEN_OVER = ("released", "archived")
_SHOWN = 10


@dataclass(frozen=True)
class Drift:
    """What changed since the catalogs were taken, in words without a value; `hashes` of now, by side."""

    changed: list[str]
    hashes: dict[Side, str]

    @property
    def text(self) -> str:
        """One sentence, shortened; empty where nothing changed."""
        more = f" and {len(self.changed) - _SHOWN} more" if len(self.changed) > _SHOWN else ""
        return "; ".join(self.changed[:_SHOWN]) + more


def command(pair: Pair) -> str:
    """By which a person accepts the catalogs of now, once both sides are alike."""
    return f"cutover doctor {pair.migration} --service {pair.service} --accept-ddl --by YOU --reason WHY"


def remedy(pair: Pair) -> str:
    """What a person does about it."""
    return f"make both sides alike, then: {command(pair)}"


async def read(pair: Pair) -> dict[Side, Fingerprint]:
    """Both catalogs as they are now."""
    async with pair.monolith.session("cutover-schema") as one, pair.target.session("cutover-schema") as two:
        return {"monolith": await fingerprint(one, pair.tables), "service": await fingerprint(two, pair.tables)}


async def take(control: Control, pair: Pair, plan_hash: str, *, by: str) -> dict[Side, Fingerprint]:
    """Takes both catalogs (Preparation). Taken again under the same plan, the first ones stay."""
    now = await read(pair)
    await fingerprints.take(control, pair.migration, pair.service, now, plan_hash=plan_hash, by=by)
    return now


async def drift(control: Control, pair: Pair) -> Drift:
    """What differs from the catalogs that were taken, and between the sides. A missing one counts as a change."""
    rows = await stages.get_stages(control, pair.migration)
    if pair.service in rows and rows[pair.service].stage in TAKEN_OVER:
        return Drift([], {})
    taken = await fingerprints.find(control, pair.migration, pair.service)
    now = await read(pair)
    hashes = {side: one.hash for side, one in now.items()}
    if taken is None:
        return Drift(["the catalogs were never taken, so nothing shows that they are as they were"], hashes)
    found = [f"{one} at the {side}" for side in now for one in changes(taken.digests[side], now[side].digests)]
    return Drift(found or _unlike(now), hashes)


async def accept(control: Control, pair: Pair, plan_hash: str, *, by: str, reason: str) -> list[str]:
    """Takes the catalogs of now in place of the former ones, by a person's decision; what had changed.

    Raises GateClosed while the sides differ: then there is nothing to accept yet.
    """
    before = await drift(control, pair)
    now = await read(pair)
    if unlike := _unlike(now):
        raise GateClosed(
            f"{pair.service}: the two sides differ, so no change is accepted: {'; '.join(unlike[:_SHOWN])}"
        )
    await fingerprints.accept(
        control, pair.migration, pair.service, now,
        plan_hash=plan_hash, by=by, reason=reason, changes=before.changed[:50],
    )  # fmt: skip
    return before.changed


def _unlike(now: dict[Side, Fingerprint]) -> list[str]:
    here, there = now["monolith"].items, now["service"].items
    return [
        f"{item} is not the same at both sides" for item in sorted({*here, *there}) if here.get(item) != there.get(item)
    ]
