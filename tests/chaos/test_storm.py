"""Each strike of a campaign's storm does what it says to a real server, and takes it back."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import asyncpg
import pytest

from chaos import campaign, servers, storm
from chaos.cells import Plan
from chaos.disks import mounted_below
from chaos.matrix import Matrix, prepared
from chaos.results import Result
from chaos.servers import Servers
from chaos.storm import Storm
from cutover.devstack.cluster import Cluster
from cutover.devstack.processes import wait_until, working_in
from cutover.errors import Exit
from tests.servers import Clusters

T = TypeVar("T")

_SETTINGS = {"fsync": "off", "wal_level": "logical"}
#: Takes some megabytes: no free page that is there already is enough.
_FILL = "INSERT INTO filled SELECT repeat(md5(n::text), 30) FROM generate_series(1, 10000) AS n"
_TELL_TIME = "import time; print(time.time(), time.monotonic())"


class Drawn(random.Random):
    """Draws always the same: for a real number the given one, for a whole one the highest, the element at `index`."""

    def __init__(self, number: float = 0.0, index: int = 0) -> None:
        super().__init__(0)
        self.number, self.index = number, index

    def random(self) -> float:
        return self.number

    def randint(self, a: int, b: int) -> int:
        return b

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        return seq[self.index]


@pytest.fixture(scope="module")
def there() -> Iterator[Servers]:
    with servers.running(("one",), _SETTINGS) as running:
        yield running


def struck(there: Servers, drawn: random.Random | None = None) -> Storm:
    found = Storm(there, "", Path("/dev/null"))
    found.rng = drawn or Drawn()
    return found


async def connected(cluster: Cluster) -> asyncpg.Connection:
    return await asyncpg.connect(cluster.superuser_dsn("postgres"))


async def test_who_asks_for_calm_the_moment_that_another_one_ends_it_has_it(
    there: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storm, "APART", (0.0, 0.0))
    found = struck(there)
    begun = asyncio.Event()

    async def strike() -> str:
        begun.set()
        return "somebody"

    found.strikes = {"strike": strike}
    async with found.calm():
        striking = asyncio.create_task(found.run())
        await asyncio.sleep(0.05)  # by now it waits
    async with found.calm():
        await asyncio.sleep(0.05)
        assert not begun.is_set()
    await asyncio.wait_for(begun.wait(), 5)
    striking.cancel()


async def test_a_stopped_server_answers_nothing_until_it_goes_on(
    there: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storm, "SERVER_STOPPED", (2.0, 2.0))
    connection = await connected(there.clusters[0])
    striking = asyncio.create_task(struck(there, Drawn(0.9)).stop_server())
    await asyncio.sleep(0.1)
    asked = asyncio.create_task(connection.fetchval("SELECT 1"))
    logging_in = asyncio.create_task(connected(there.clusters[0]))
    done, _ = await asyncio.wait({asked, logging_in}, timeout=1)
    assert not done
    assert not striking.done()
    assert await striking
    assert await asked == 1
    await (await logging_in).close()
    await connection.close()


async def test_a_full_disk_takes_no_rows_until_there_is_room(there: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a new file of WAL, which would end the server: how long it then takes to come up is not for here."""
    if not there.disks:
        assert there.left_out["disk full"]
        return
    monkeypatch.setattr(storm, "FULL", (1.5, 1.5))
    [cluster], [disk] = there.clusters, there.disks
    connection = await connected(cluster)
    await connection.execute("DROP TABLE IF EXISTS filled; CREATE TABLE filled (text text)")
    striking = asyncio.create_task(struck(there, Drawn(0.9)).fill_disk())
    while disk.free:
        await asyncio.sleep(0.01)
    with pytest.raises(asyncpg.DiskFullError):
        await connection.execute(_FILL)
    assert disk.free == 0
    assert await striking
    assert disk.free > 0
    connection.terminate()
    connection = await connected(cluster)
    assert await connection.execute(_FILL) == "INSERT 0 10000"
    await connection.close()


async def test_a_changed_password_ends_logins_and_lets_nobody_in_until_it_is_back(
    there: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storm, "REFUSED", (1.0, 1.0))
    [cluster] = there.clusters
    connection = await connected(cluster)
    striking = asyncio.create_task(struck(there).change_password())
    while not connection.is_closed():
        await asyncio.sleep(0.01)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await connected(cluster)
    assert not striking.done()
    assert await striking
    await (await connected(cluster)).close()


async def test_a_clock_that_jumps_comes_back(there: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    if not there.clocks:
        assert there.left_out["clock jumped"]
        return
    monkeypatch.setattr(storm, "OFF", (0.5, 0.5))
    connection = await connected(there.clusters[0])

    async def of_server() -> float:
        return float(await connection.fetchval("SELECT extract(epoch FROM now())")) - time.time()

    striking = asyncio.create_task(struck(there).jump_clock())
    await asyncio.sleep(0.1)
    assert await of_server() == pytest.approx(storm.JUMP, abs=30)
    assert await striking
    assert await of_server() == pytest.approx(0, abs=30)
    await connection.close()


async def test_the_clock_of_processes_jumps_and_the_monotonic_one_does_not(
    there: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not there.clocks:
        assert there.left_out["clock jumped"]
        return
    monkeypatch.setattr(storm, "OFF", (1.0, 1.0))

    async def of_process() -> tuple[float, float]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _TELL_TIME, env=dict(there.environment), stdout=subprocess.PIPE
        )
        said, _ = await process.communicate()
        wall, monotonic = map(float, said.split())
        return wall - time.time(), monotonic - time.monotonic()

    striking = asyncio.create_task(struck(there, Drawn(index=-1)).jump_clock())
    await asyncio.sleep(0.1)
    assert await of_process() == pytest.approx((storm.JUMP, 0), abs=30)
    assert await striking
    assert await of_process() == pytest.approx((0, 0), abs=30)


def test_what_the_machine_does_not_allow_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with servers.running(("one",), _SETTINGS) as running:
        found = Storm(running, "", Path("/dev/null"))
        assert running.left_out.keys() == {"disk full", "clock jumped"}
        assert not running.left_out.keys() & found.strikes.keys()
        assert campaign.report([], found, "x", 1) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["left out"] == {
        "disk full": "mount does not run: No such file or directory",
        "clock jumped": "cc does not run: No such file or directory",
    }


def test_an_hour_in_which_some_kind_of_strike_never_came_proves_too_little(capsys: pytest.CaptureFixture[str]) -> None:
    with servers.running(("one",), _SETTINGS) as running:
        storm = Storm(running, "", Path("/dev/null"))
    storm.struck.update(dict.fromkeys(storm.strikes, 1))
    done = Result(Plan(0, "logical", ((),), "x"))
    assert campaign.report([done], storm, "x", 60) == 0
    del storm.struck["server killed"]
    assert campaign.report([done], storm, "x", 59) == 0
    assert campaign.report([done], storm, "x", 60) == 1
    assert "NEVER STRUCK: server killed" in capsys.readouterr().out


def test_what_a_killed_campaign_leaves_is_swept_by_the_next_one() -> None:
    code = (
        "import os, signal\nfrom chaos import servers\n"
        f"with servers.running(('one',), {_SETTINGS!r}) as there:\n"
        "    print(there.clusters[0].folder.parent, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    folder = Path(done.stdout.strip())
    assert done.returncode == -signal.SIGKILL
    assert working_in(folder / "one" / "data")
    servers.sweep()
    assert not folder.exists()
    assert not mounted_below(folder)
    assert wait_until(lambda: not working_in(folder / "one" / "data"), 5)


def heed_all() -> None:
    """A process that is begun ignores what its parent does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_campaign_that_is_stopped_leaves_no_server_and_no_disk(number: signal.Signals) -> None:
    """Its runs themselves are left out: what they have is gone with the servers."""
    code = (
        "import asyncio\nfrom chaos import campaign\n"
        "async def measure(there):\n    print(there.clusters[0].folder.parent, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "campaign.measure = measure\ncampaign.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_all,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert working_in(folder / "monolith" / "data")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED, said
    assert not folder.exists()
    assert not mounted_below(folder)


@pytest.mark.slow
async def test_a_lost_slot_is_mended_by_the_doctor_and_nothing_is_lost(clusters: Clusters, tmp_path: Path) -> None:
    matrix = Matrix([clusters.monolith, clusters.services], await prepared(clusters.services), tmp_path)
    await matrix.run(Plan(0, "logical", ((), ()), "lost", frozenset({0, 1})))
    [result] = matrix.results
    assert result.violations == []
    assert result.slots_lost == 2
    assert result.switches == 2
