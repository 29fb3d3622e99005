"""When the demo's waiting ends: with the migration, with its limit, or with what cannot go on; not with a helper."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.client import WorkflowHandle

from examples.ai_trader.demo import Demo, Options
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
