"""From measurements to evidence: recorded in the control database, named by a code, compared with what was approved."""

from collections.abc import Mapping

from activities import models as m
from cutover.control import evidence, plans
from cutover.control.database import Control


async def as_evidence(
    control: Control,
    request: m.GateRequest,
    problems: list[str],
    measures: Mapping[str, float],
    facts: Mapping[str, m.Scalar],
) -> m.GateEvidence:
    """Record what was measured. `measures`: higher is worse; they alone decide whether it got worse.

    Raises PlanReplaced where a person has adopted another plan: evidence of the former one opens nothing.
    """
    ref = request.ref
    await plans.require(control, ref.migration, ref.plan_hash)
    measured = {"measures": dict(measures), "facts": dict(facts), "problems": list(problems)}
    taken = evidence.Evidence(ref.migration, ref.service, request.gate, ref.plan_hash, measured, not problems)
    code = await evidence.record(control, taken)
    worse, why = False, ""
    if request.against and evidence.normal(request.against) != code:
        seen = await evidence.get(control, ref.migration, request.against)
        if seen is None:
            worse, why = True, f"the approved evidence {request.against!r} is not known any more"
        elif seen.plan_hash != ref.plan_hash:
            worse, why = True, "the approved evidence was taken under another plan"
        elif evidence.worse(seen.facts, measured):
            before = seen.facts.get("measures") or {}
            worse, why = (
                True,
                "worse than what was approved: "
                + ", ".join(
                    f"{name} {before.get(name, 0)} → {value:g}"
                    for name, value in sorted(measures.items())
                    if value > float(before.get(name) or 0)
                ),
            )
    shown: dict[str, m.Scalar] = {**{name: round(value, 6) for name, value in sorted(measures.items())}, **facts}
    return m.GateEvidence(
        code=code,
        ok=not problems,
        problems=[one[:300] for one in problems[:20]],
        facts=shown,
        worse=worse,
        why=why[:500],
    )
