"""What goes into a switch and what comes out; small, JSON, without secrets or rows."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from cutover.postgres.databases import Side


class SwitchRequest(BaseModel):
    """One switch of one service. The same `switch_id` always means the same switch."""

    model_config = ConfigDict(frozen=True)

    migration: str
    service: str
    switch_id: str
    to_side: Side
    plan_hash: str


class StepTiming(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    ms: float


class SwitchOutcome(BaseModel):
    """How a switch ended.

    `pause_ms` is announcement to end, as clients see it; `write_pause_ms` runs from the first lock
    attempt of the fence and is 0 where the switch was recovered; `pause_ms` of one counts until the recovery began.
    `compared_keys`
    counts the keys compared right before the fence and inside it.
    """

    model_config = ConfigDict(frozen=True)

    result: Literal["done", "undone"]
    switch_id: str
    service: str
    from_side: Side
    to_side: Side
    epoch: int
    reason: str | None = None
    pause_ms: float = 0.0
    write_pause_ms: float = 0.0
    acked: int = 0
    lapsed: int = 0
    compared_keys: int = 0
    recovered: bool = False
    steps: list[StepTiming] = []


class GateFacts(BaseModel):
    """What the gates measured. `measures`: higher is worse. `problems`: why it may not go on, in words."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    problems: list[str]
    measures: dict[str, float]
    facts: dict[str, str]
