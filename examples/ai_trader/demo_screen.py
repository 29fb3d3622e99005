"""The live screen of the demo: that of `cutover status`, the clients' figures above and people's answers below."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cutover.cli import status
from cutover.cli.status import Overview
from examples.ai_trader.demo_kills import Killed
from examples.ai_trader.demo_person import Decided
from examples.ai_trader.demo_watch import PHASES, Scene, phase_of

_LAST = 5


def lag_of(found: Overview) -> float | None:
    """The largest lag in seconds that a run shows; None where none does."""
    lags = [run.progress.get(name) for run in found.runs for name in ("lag seconds", "reverse lag seconds")]
    return max((float(lag) for lag in lags if isinstance(lag, int | float)), default=None)


def differences_of(found: Overview) -> int:
    return sum(line.differences or 0 for line in found.services)


def line(scene: Scene, services: Sequence[str]) -> str:
    """One line, for a terminal that is none."""
    lag = lag_of(scene.overview)
    waiting = [f"{gate.name} of {run.service or run.workflow}" for run in scene.overview.runs for gate in run.gates]
    staged = ", ".join(f"{name} {stage}" for name, stage in sorted(scene.stages.items()) if name)
    traffic = scene.traffic
    return (
        f"{scene.at:5.0f} s  {phase_of(scene.stages, services)} | {scene.writes_per_second:.0f} rows/s, "
        f"{traffic.get('fail', 0) + traffic.get('fenced', 0)} failed | lag {'-' if lag is None else f'{lag:.2f} s'} | "
        f"{differences_of(scene.overview)} differences | {staged or 'no stage yet'}"
        + (f" | gates: {', '.join(waiting)}" if waiting else "")
    )


def render(
    scene: Scene, services: Sequence[str], decided: Sequence[Decided], killed: Sequence[Killed]
) -> RenderableType:
    """The screen."""
    phase = phase_of(scene.stages, services)
    shown = Text(f"{scene.at:.0f} s  ", style="bold")
    for name in PHASES[:-1]:
        shown.append(f" {name} ", style="reverse" if name == phase else "dim")
    lag = lag_of(scene.overview)
    traffic = scene.traffic
    figures = Text(
        f"{scene.writes_per_second:.0f} rows written a second, {traffic.get('ok', 0)} in all, "
        f"{traffic.get('fail', 0) + traffic.get('fenced', 0)} failed, {traffic.get('unknown', 0)} unknown; "
        f"psql: {scene.psql.get('ok', 0)} written, {scene.psql.get('fenced', 0)} refused by the fence; "
        f"lag {'-' if lag is None else f'{lag:.2f} s'}; {differences_of(scene.overview)} differences"
    )
    news = [Text(str(one), style="dim") for one in decided[-_LAST:]]
    news += [Text(str(one), style="yellow") for one in killed[-_LAST:]]
    return Group(shown, figures, status.render(scene.overview), *news)
