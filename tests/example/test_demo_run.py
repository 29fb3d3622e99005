"""When the demo's waiting ends: with the migration, with its limit, or with what cannot go on; not with a helper."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.client import WorkflowHandle

from examples.ai_trader.demo import Demo, Options, perform
from examples.ai_trader.demo_ground import Ground
from examples.ai_trader.demo_person import GaveUp


class Handle:
    """A migration that takes as long as it is told."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def result(self) -> str:
        await asyncio.sleep(self.seconds)
        return "complete"


async def ends(tmp_path: Path, seconds: float, *background: Awaitable[None], limit: float = 5.0) -> str:
    demo = Demo(Options(time_limit=limit), Ground.at(tmp_path), lambda text: None)
    return await demo._until_done(cast("WorkflowHandle[Any, Any]", Handle(seconds)), list(background))


async def gives_up() -> None:
    raise GaveUp("parked still")


async def is_done_early() -> None:
    return None


async def breaks() -> None:
    raise AssertionError("an untrue line")


async def test_a_helper_that_has_done_its_part_does_not_end_the_wait(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert await ends(tmp_path, 0.3, is_done_early()) == ""
    assert loop.time() - begun >= 0.3


async def test_people_who_give_up_end_it_with_their_reason(tmp_path: Path) -> None:
    assert await ends(tmp_path, 60, gives_up()) == "parked still"


async def test_the_limit_ends_it(tmp_path: Path) -> None:
    assert "not complete after 0 s" in await ends(tmp_path, 60, limit=0.1)


async def test_a_watcher_that_fails_is_heard(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="untrue"):
        await ends(tmp_path, 60, breaks())


HOLD = """
import sys
from pathlib import Path
from examples.ai_trader.demo_ground import Ground
with Ground.at(Path(sys.argv[1])).alone():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_demo_in_the_same_home_is_refused_and_touches_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_: Any) -> None:
        raise AssertionError("the first demo's stack was touched")

    monkeypatch.setattr(Ground, "stack", touched)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            (tmp_path / "logs").mkdir()
            assert perform(Options(home=tmp_path)) == 2
            said = " ".join(capfd.readouterr().out.split())
            assert f"another demo (process {first.pid}) is at work" in said
            assert (tmp_path / "logs").exists()
        finally:
            first.kill()
    with Ground.at(tmp_path).alone():  # the lock is gone with its process
        pass
