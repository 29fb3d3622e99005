"""When a stream is rested on by reads that have moved, by this process's own clock."""

from types import SimpleNamespace
from typing import cast

import asyncpg
import pytest

from cutover.dualwrite import mirror
from cutover.dualwrite.two_sides import LOOK_EVERY


def test_what_is_known_of_a_stream_is_fresh_at_every_look_and_old_before_others_rest_on_a_new_one() -> None:
    assert 1.2 * LOOK_EVERY < mirror.KNOWN_FOR < mirror.NOTICED_AFTER


async def test_a_stream_that_comes_up_is_rested_on_once_all_have_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("cutover.dualwrite.mirror.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(mirror, "NOTICED_AFTER", 4.0)
    one = mirror.Mirror(lambda: True, "trading")
    one.rest_on("a")
    now += 3.9
    assert not one.unsettled
    now += 0.2
    assert one.unsettled
    one.rest_on("a")
    assert one.unsettled, "the same one as before"
    one.adopted(6.0)
    now += 6.0
    assert not one.unsettled, "others may not have taken the plan over"
    now += 6.0
    assert one.unsettled
    one.rest_on("b")
    assert not one.unsettled
    await one.settle(cast(asyncpg.Connection, None), "trading")  # of who asked before it came up
    assert one._left
