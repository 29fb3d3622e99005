"""Processes of the harness: how one has ended is known, and a campaign that is killed leaves none behind."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE

import pytest

from chaos.processes import Child, Crashed, Say
from cutover.errors import Unreachable
from tests.waiting import until


async def wait_for_ever(say: Say) -> None:
    say("pids", (os.getpid(), os.getppid()))
    await asyncio.sleep(3600)


async def start() -> None:
    child = Child("one", wait_for_ever)
    print(*await child.said("pids", 30), flush=True)
    await asyncio.sleep(3600)


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_the_processes_of_a_campaign_that_is_killed_end_with_it() -> None:
    program = "import asyncio; from tests.chaos.test_processes import start; asyncio.run(start())"
    campaign = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=PIPE)
    assert campaign.stdout is not None
    pids = [int(pid) for pid in (await asyncio.wait_for(campaign.stdout.readline(), 60)).split()]
    assert all(map(runs, pids))
    campaign.send_signal(signal.SIGKILL)
    await campaign.wait()

    async def gone() -> bool:
        return not any(map(runs, pids))

    await until(gone, "neither the process nor who it was forked from runs")


async def _soon(say: Say) -> None:
    await asyncio.sleep(0.05)


async def test_how_a_process_has_ended_is_known_though_others_are_started_meanwhile() -> None:
    ends = []
    for number in range(100):
        ends.append(asyncio.create_task(Child(f"child {number}", _soon).ended(30)))
        await asyncio.sleep(0)
    assert await asyncio.gather(*ends) == [0] * 100


async def _away(say: Say) -> None:
    raise Unreachable("the control database is away")


async def _wrong(say: Say) -> None:
    raise KeyError("row")


async def test_an_error_of_ours_is_told_and_every_other_one_is_a_crash() -> None:
    away, wrong = Child("away", _away), Child("wrong", _wrong)
    assert await away.said("failed", 30) == ("Unreachable", "the control database is away")
    await asyncio.gather(away.ended(30), wrong.ended(30))
    away.require_no_crash()
    with pytest.raises(Crashed, match="wrong ended with 1"):
        wrong.require_no_crash()
