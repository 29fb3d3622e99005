"""What people send to a run, and what a run was started with; read leniently, refused in words.

A payload comes from a web page, a shell or a program, so it may be anything. `parse` turns it into
a message or raises `RefusedMessage` with a text that says what would be right.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

Action = Literal["approve", "reject", "pause", "resume", "rollback", "retry", "skip", "hand_over"]

Short = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class RefusedMessage(Exception):
    """The message changes nothing; the text says why and what would be right."""


class Message(BaseModel):
    """A message of a person: who, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
    by: Name
    reason: Short = ""


class Approval(Message):
    """`approve` and `reject`: which gate (needed where several are open) and which evidence was seen."""

    evidence: Short = ""
    gate: Short = ""


MODELS: dict[Action, type[Message]] = {
    "approve": Approval,
    "reject": Approval,
    "pause": Message,
    "resume": Message,
    "rollback": Message,
    "retry": Message,
    "skip": Message,
    "hand_over": Approval,
}

EXAMPLES: dict[Action, str] = {
    "approve": '{"by": "alice", "evidence": "k7f2"}',
    "reject": '{"by": "alice", "reason": "lag looks odd"}',
    "hand_over": '{"by": "alice", "evidence": "k7f2"}',
}


def parse(action: Action, payloads: Sequence[Any]) -> Message:
    """The message in the payloads. Raises RefusedMessage."""
    model = MODELS[action]
    example = EXAMPLES.get(action, '{"by": "alice"}')
    if len(payloads) != 1 or payloads[0] is None:
        raise RefusedMessage(f"{action}: one JSON object was expected, not {len(payloads)} values; send {example}")
    payload = payloads[0]
    if isinstance(payload, BaseModel):
        payload = payload.model_dump()
    if not isinstance(payload, dict):
        raise RefusedMessage(f"{action}: a JSON object was expected, not a {kind_of(payload)}; send {example}")
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        raise RefusedMessage(f"{action}: {problems(error, model)}; send {example}") from None


def kind_of(value: Any) -> str:
    """JSON's word for a value's type."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    names = ((str, "string"), (list, "list"), (bytes, "binary value"))
    return next((name for kind, name in names if isinstance(value, kind)), "value of another kind")


def problems(error: ValidationError, model: type[BaseModel]) -> str:
    """A validation error in one line, without the values that were sent."""
    known = ", ".join(model.model_fields)
    texts = []
    for one in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in one["loc"])[:60] or "the value"
        if one["type"] == "missing":
            texts.append(f"{field!r} is missing")
        elif one["type"] == "extra_forbidden":
            texts.append(f"{field!r} is not known (known: {known})")
        else:
            texts.append(f"{field!r}: {one['msg'].lower()}")
    return "; ".join(texts)


# --- what a run is started with ------------------------------------------------------------------


class PastApproval(BaseModel):
    """An approval as it is kept in status and over continue-as-new."""

    gate: str
    by: str
    at: datetime
    evidence: str = ""
    reason: str = ""
    decision: Literal["approve", "reject"] = "approve"


class Refusal(BaseModel):
    """A message that was refused."""

    at: datetime
    action: str
    text: str


class Waited(BaseModel):
    """A long wait that goes on in the next run of the same workflow: since when, and what a soak has counted."""

    began: datetime
    samples: int = 0
    #: Samples in a row that found each threshold breached.
    breaches: dict[str, int] = {}
    #: Thresholds that had seen too little at the last sample.
    unjudged: list[str] = []


class Carried(BaseModel):
    """State that a run hands to the next one of the same workflow (continue-as-new)."""

    paused_by: str = ""
    approvals: list[PastApproval] = []
    refused: list[Refusal] = []
    deadlines: dict[str, datetime] = {}
    progress: dict[str, str | int | float | bool | None] = {}
    decisions: int = 0
    waited: Waited | None = None


class Start(BaseModel):
    """`{"plan": "ai-trader"}`; the rest is for the runs themselves."""

    model_config = ConfigDict(extra="forbid")
    plan: Name
    plan_hash: str = ""
    resume: str = ""
    carried: Carried = Carried()


class ServiceStart(Start):
    """`{"plan": "ai-trader", "service": "trading_engine"}`."""

    service: Name


class TableStart(ServiceStart):
    """A reconciliation pass of one table."""

    table: Name


class MigrationStart(Start):
    """The programme: `virtual_origin` is when its first run began; compressed time is counted from there."""

    virtual_origin: datetime | None = None
    current: str = ""


StartT = TypeVar("StartT", bound=Start)


def parse_start(payload: Any, model: type[StartT]) -> tuple[StartT, str]:
    """The input of a run and "", or an empty input and what was wrong with it (a run must not raise in `__init__`)."""
    fields = {name: "-" for name, field in model.model_fields.items() if field.is_required()}
    example = ", ".join(f'"{name}": "…"' for name in fields)
    if isinstance(payload, BaseModel):
        payload = payload.model_dump()
    if not isinstance(payload, dict):
        return model.model_validate(fields), f"the input must be one JSON object {{{example}}}"
    try:
        return model.model_validate(payload), ""
    except ValidationError as error:
        return model.model_validate(fields), f"the input is wrong: {problems(error, model)}; send {{{example}}}"
