"""When the demo kills: ten moments, drawn from a seed, each once its phase is seen."""

import random
from datetime import UTC, datetime

from cutover.cli.status import Overview
from examples.ai_trader.demo_kills import MOMENTS, Moment, draw
from examples.ai_trader.demo_watch import Scene
from examples.ai_trader.tables import SERVICES
from workflows.status import Status

NOW = datetime(2026, 1, 5, 9, tzinfo=UTC)


def scene(workflow_id: str, phase: str) -> Scene:
    shown = Status(
        workflow="x",
        workflow_id=workflow_id,
        migration="ai-trader",
        phase=phase,
        state="RUNNING",
        waiting_for="x",
        since=NOW,
    )
    return Scene(1.0, Overview("ai-trader", runs=[shown]), {}, {}, {})


def test_ten_moments_are_spread_over_all_phases() -> None:
    moments = draw(random.Random(1), list(SERVICES), "trading_engine")
    assert len({moment.name for moment in moments}) == MOMENTS
    assert {moment.where for moment in moments} == {"preparation", "replication", "switchover", "cleanup"}
    assert sum(1 for moment in moments if moment.switch) == 3


def test_the_seed_decides_which_services() -> None:
    def drawn(seed: int) -> list[Moment]:
        return draw(random.Random(seed), list(SERVICES), "trading_engine")

    assert drawn(7) == drawn(7)
    assert any(drawn(7) != drawn(seed) for seed in range(8, 20))


def test_the_pause_of_the_rollback_is_among_them() -> None:
    moments = draw(random.Random(1), list(SERVICES), "trading_engine")
    assert [one.switch for one in moments if one.service == "trading_engine"] == [2]


def test_a_moment_comes_with_its_phase_and_its_run() -> None:
    soak = Moment("soak", "switchover", ("soak",), "analytics")
    assert soak.reached(scene("migration/ai-trader/analytics/switchover", "soak"), "ai-trader")
    assert not soak.reached(scene("migration/ai-trader/analytics/switchover", "read gate"), "ai-trader")
    assert not soak.reached(scene("migration/ai-trader/trading_engine/switchover", "soak"), "ai-trader")
    backfill = Moment("backfill", "replication", ("backfill",))
    assert backfill.reached(scene("migration/ai-trader/analytics/replication", "backfill"), "ai-trader")
