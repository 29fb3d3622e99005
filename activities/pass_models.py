"""What goes in and out of the activities of a reconciliation pass (see `activities.models`)."""

from datetime import datetime

from activities.rules import Model, Ref


class PassRequest(Model):
    """One reconciliation pass over one table; the direction follows the primary side of now."""

    ref: Ref
    table: str
    #: The same id goes on where a pass stood.
    pass_id: str = ""


class PassOpened(Model):
    """Into how many spans the pass was cut (0: it has its report), and how many may be walked at the same time."""

    spans: int
    at_once: int = 1


class SpanRequest(Model):
    """One span of a pass; the first is 1."""

    ref: Ref
    table: str
    pass_id: str
    number: int


class SpanWalked(Model):
    """Walked to its end, or stopped by a freeze window until that moment, to be gone on with."""

    frozen_until: datetime | None = None


class PassResult(Model):
    """The report's figures (row counts; rate as a share of the source's rows; seconds)."""

    table: str
    direction: str = "forward"
    report_id: str = ""
    rows_source: int = 0
    rows_target: int = 0
    missing: int = 0
    extra: int = 0
    mismatched: int = 0
    unsettled: int = 0
    rate: float = 0.0
    rate_limit: float = 0.001
    seconds: float = 0.0

    @property
    def differences(self) -> int:
        return self.missing + self.extra + self.mismatched


class ResolveRequest(Model):
    """Apply the plan's conflict rule to the open differences of a report."""

    ref: Ref
    table: str
    report_id: str


class Resolved(Model):
    """Differences repaired, and those that wait for a person; `refused` says why the others stay as they are."""

    repaired: int = 0
    cases: int = 0
    refused: str = ""
