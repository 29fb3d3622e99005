"""The plan as far as a workflow needs it.

Durations that are waited for on purpose are already compressed by the plan's factor; the workflows
never compress anything themselves but the calendar.
"""

from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

Scalar = str | int | float | bool | None
FROZEN = ConfigDict(frozen=True)
SideName = Literal["monolith", "service"]


class Model(BaseModel):
    """Base of all of them: never changed after it was made."""

    model_config = FROZEN


class Ref(Model):
    """Which migration (bound to which plan) and, where it is about one, which service."""

    migration: str
    plan_hash: str = ""
    service: str | None = None


# --- the plan, as far as a workflow needs it -----------------------------------------------------


class TableRules(Model):
    """A table and the compressed cadence of its reconciliation."""

    name: str
    every: timedelta


class ServiceRules(Model):
    """A service and its tables, in the plan's order, and the stream that carries them."""

    name: str
    tables: list[TableRules]
    stream: str = "logical"


class TaskRules(Model):
    """A human item of the checklist."""

    key: str
    owner: str
    phase: str
    description: str = ""
    duration: str = ""
    service: str | None = None


class Rules(Model):
    """The plan a run is bound to, as numbers a workflow waits by."""

    migration: str
    plan_hash: str
    compress: float = 1.0
    services: list[ServiceRules] = []
    dual_write_at_least: timedelta = timedelta(days=14)
    soak: timedelta = timedelta(hours=1)
    #: However short a soak is, it takes this many samples.
    soak_samples: int = 30
    deprecation: timedelta = timedelta(hours=24)
    quiet_for: timedelta = timedelta(days=7)
    hour: timedelta = timedelta(hours=1)
    #: How often a stream is looked at while nothing else happens.
    watch_every: timedelta = timedelta(minutes=10)
    approvals_required: int = 2
    approvals_expire: timedelta = timedelta(hours=24)
    max_write_pause: timedelta = timedelta(seconds=5)
    #: The rules that a run asked for, where a person has adopted these in their place; by whom, and what differs.
    former: "Rules | None" = None
    adopted_by: str = ""
    changes: str = ""

    def service(self, name: str) -> ServiceRules | None:
        """The rules of that service, or None where the plan does not know it."""
        return next((one for one in self.services if one.name == name), None)
