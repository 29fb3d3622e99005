"""A pass that could judge nothing verifies nothing: the gates stay closed."""

from activities import models as m
from tests.activities.conftest import Ground


async def test_rows_that_would_not_hold_still_close_the_gates_ready_and_read(ground: Ground) -> None:
    await ground.prepare()
    await ground.replicate()
    service = ground.services[2]

    async def unsettled() -> list[str]:
        found: list[str] = []
        for measure, gate in ((ground.replication.measure_ready, "ready"), (ground.switching.measure_read, "read")):
            measured: m.GateEvidence = await ground.do(measure, ground.gate(gate, service))
            found += [f"{gate}: {one}" for one in measured.problems if "did not settle" in one]
        return found

    assert await unsettled() == []
    await ground.control.execute("UPDATE control.report SET unsettled = rows_source WHERE service = $1", service)
    words = "users: 50 of its rows did not settle in the last pass, so nobody can judge them"
    assert await unsettled() == [f"ready: {words}", f"read: {words}"]
