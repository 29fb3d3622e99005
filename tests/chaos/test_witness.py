"""Who is at work, and what has been acknowledged, read from logs that are still being written."""

import asyncio
from pathlib import Path

import pytest

from chaos.oplog import Log
from chaos.witness import Idle, Witness
from tests.chaos.stories import SERVICE, event

LOOP = ("client-0", 1)


class Writer:
    """A client's log, with the real clock."""

    def __init__(self, folder: Path, name: str, by: str = "") -> None:
        self.log = Log(folder / f"{name}.jsonl", run=name, by=by)

    def writes(self, token: str, outcome: str = "ok", side: str = "service", to: str | None = None) -> None:
        op = self.log.next_name()
        self.log.note("invoke", op, SERVICE, writes=[event(token).as_json()], side=to)
        self.log.note(outcome, op, SERVICE, side=side if outcome == "ok" else None)  # type: ignore[arg-type]


async def test_what_is_acknowledged_is_known_and_what_is_not_is_not(tmp_path: Path) -> None:
    witness, client = Witness(tmp_path, lambda key: key), Writer(tmp_path, "client-0")
    client.writes("a")
    client.writes("b", "fail")
    client.writes("c", "unknown")
    with (tmp_path / "client-0.jsonl").open("a") as file:
        file.write('{"event": "invoke", "op": "client')
    witness.look()
    assert witness.events == {"a"}


async def test_who_works_at_the_side_after_the_call_is_at_work(tmp_path: Path) -> None:
    witness, client = Witness(tmp_path, lambda key: key), Writer(tmp_path, "client-0")
    bypass = Writer(tmp_path, "bypass", by="bypass")
    waiting = asyncio.create_task(witness.at_work("service", [LOOP, ("bypass", "service")], 30))
    await asyncio.sleep(0)
    client.writes("a")
    bypass.writes("b", to="service")
    await waiting


@pytest.mark.parametrize(
    ("outcome", "side"), [("fenced", "service"), ("unknown", "service"), ("fail", "service"), ("ok", "monolith")]
)
async def test_who_is_refused_or_writes_at_the_other_side_is_not_at_work(
    tmp_path: Path, outcome: str, side: str
) -> None:
    witness, client = Witness(tmp_path, lambda key: key), Writer(tmp_path, "client-0")
    client.writes("before")
    waiting = asyncio.create_task(witness.at_work("service", [LOOP], 0.3))
    await asyncio.sleep(0)
    client.writes("a", outcome, side)
    with pytest.raises(Idle, match="by: client-0 1"):
        await waiting


async def test_who_does_not_read_any_more_is_named(tmp_path: Path) -> None:
    witness, client = Witness(tmp_path, lambda key: key), Writer(tmp_path, "client-0")
    waiting = asyncio.create_task(witness.at_work("service", [("client-0", "read")], 0.2))
    await asyncio.sleep(0)
    op = client.log.next_name()
    client.log.look(op, SERVICE, "read_your_writes", [1])
    client.log.note("fail", op, SERVICE)
    with pytest.raises(Idle, match="client-0 read"):
        await waiting
