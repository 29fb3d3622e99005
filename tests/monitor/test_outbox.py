"""Alarms of a stream of intents: what it does not capture, its outbox gone, keys that the other side refuses."""

import pytest

from cutover.monitor import flow
from cutover.monitor.findings import Finding
from cutover.postgres import outbox_capture, outbox_schema
from cutover.streams.outbox import OutboxStream
from cutover.switch import mending
from tests.monitor.conftest import Watched
from tests.switch.test_outbox import relays
from tests.waiting import until

TRIGGER = outbox_capture.ROWS


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong here does not end by itself."""
    monkeypatch.setattr(flow, "PROOF_SECONDS", 0.2)
    monkeypatch.setattr(flow, "SETTLE_SECONDS", 0.0)


async def stream_alarm(outbox: Watched) -> Finding:
    (found,) = await outbox.found("stream")
    assert (found.severity, found.subject) == ("critical", "forward")
    assert found.text.startswith("the forward stream does not run: ")
    return found


async def test_changes_that_are_not_captured_and_an_outbox_that_is_gone(outbox: Watched) -> None:
    source, rebuild = outbox.env.pair.monolith.name, f"--service {outbox.env.pair.service} --rebuild-stream"
    await outbox.on("monolith", f"ALTER TABLE trades DISABLE TRIGGER {TRIGGER}")
    found = await stream_alarm(outbox)
    assert f"changes of trades are not captured at {source!r}" in found.text
    assert "changes are missing, the stream has to be rebuilt" in found.text
    assert found.remedy == f"cutover doctor test {rebuild}"
    await outbox.on("monolith", f"ALTER TABLE trades ENABLE ALWAYS TRIGGER {TRIGGER}")
    assert "not captured" not in (await stream_alarm(outbox)).text

    truncates = outbox_capture.TRUNCATES
    await outbox.on("monolith", f"ALTER TABLE trades DISABLE TRIGGER {truncates}")
    found = await stream_alarm(outbox)
    assert f"a TRUNCATE of trades is not captured at {source!r}" in found.text
    assert found.remedy == f"cutover doctor test --service {outbox.env.pair.service} --mend"
    await mending.mend(outbox.env, lambda _: None)
    assert "TRUNCATE" not in (await stream_alarm(outbox)).text

    await outbox.on("monolith", f"DROP TABLE {outbox_schema.outbox_table(outbox.env.pair.service).sql}")
    found = await stream_alarm(outbox)
    assert f"its outbox at {source!r} is gone" in found.text
    assert found.remedy == f"cutover doctor test {rebuild}"


async def test_a_key_that_the_other_side_refuses_is_told_until_somebody_has_decided_on_it(outbox: Watched) -> None:
    stream = outbox.env.stream("forward")
    assert isinstance(stream, OutboxStream)
    await outbox.on("service", "ALTER TABLE trades ADD CONSTRAINT sober CHECK (note <> 'poison')")
    await outbox.on("monolith", "INSERT INTO trades (price, note) VALUES (1, 'poison')")
    async with relays(outbox.env.pair):

        async def is_held() -> bool:
            return len(await stream.held()) == 1

        await until(is_held, "the key is held")

        async def nothing_else() -> bool:
            return "relay" not in (await stream_alarm(outbox)).text

        await until(nothing_else, "the relays look after all shards")
        found = await stream_alarm(outbox)
        assert found.text == "the forward stream does not run: 1 key of trades held in quarantine"
        assert "poison" not in str(found)
        assert found.remedy.endswith("held keys: cutover quarantine list test")
        await stream.skip([one.id for one in await stream.held()], by="ann", why="not wanted there")
        await outbox.mended("stream")
