"""What a plan may say without effect in this version: told plainly, and never refused."""

from cutover.plan.models import Plan

TRAFFIC = (
    "traffic has no effect yet: its steps are kept and checked, but no run takes them; all reads of a service move "
    "at once, with its read switch, or by hand: cutover flags set PLAN SERVICE_percentage"
)


def notes(plan: Plan) -> list[str]:
    """A sentence for each key of the file that this version accepts and does not act on."""
    set_by = [name for name, service in plan.services.items() if "traffic" in service.model_fields_set]
    return [f"services.{name}.{TRAFFIC}" for name in set_by]
