"""Each effect of a protocol has a fault point before it and one after it, and each point that is listed exists."""

import ast
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cutover import faults
from cutover.cli.main import app
from cutover.errors import Exit
from cutover.switch.steps import SECTION
from tests.switch.effects import Bare, Source

ROOT = Path(faults.__file__).parents[1]
ROOMS = [path for room in ("cutover", "activities") for path in sorted((ROOT / room).rglob("*.py"))]

_MARKER = "a marker that asks whether a stream carries: nothing rests on it, and the next look puts one of its own"
_ALONE = "one statement, or idempotent: the activity is called again. The matrix begins behind it"
_SECTION = "`_perform` awaits it between the points of its step (`switch.*`)"
_BRANCH = "ends a branch with nothing to keep; one that is left is the janitor's (tests/dualwrite/test_strong_kills.py)"
#: Effects that stand in no step, and the reason, with the test that covers them.
EXEMPT = {
    Bare(module, function, called): why
    for why, module, function, names in (
        (_SECTION, "cutover.switch.forward", "run",
         "_announce _fence _carry_marker _raise_sequences _compare _unfence _journal _flip"),
        # beside a switch: no turn of the matrix passes them
        ("only where a server is another one than noted, which none of the matrix is (tests/switch/test_servers.py)",
         "cutover.switch.servers", "_put_back", "set_fence"),
        ("only where a source was set back, one statement that every opening and every acceptance does again "
         "(tests/switch/test_outbox_after_failover.py)", "cutover.streams.outbox.relay", "_know_source",
         "raise_over_sink"),
        ("the same, by a person's command", "cutover.switch.servers", "_raise_versions", "draw_above"),
        ("only a table that came late has no fence, and none of the matrix does; one transaction, made by the next "
         "look where it was not (tests/monitor/test_sides.py: a_fence_that_was_dropped_is_made_where_the_monitor_may)",
         "cutover.monitor.fences", "_mend", "create_sql"),
        ("what comes before `keys.detach.before`, in whose step nothing else is done (tests/switch/test_crossing.py: "
         "a_key_that_was_noted_and_not_taken_off)", "cutover.switch.crossing", "take_off", "set_detached"),
        ("each queued parent in a transaction of its own (tests/switch/test_crossing.py); the matrix has no such keys",
         "cutover.switch.crossing", "_process", "process_loose_keys"),
        ("the queue is followed before and behind it, run again (tests/activities/test_cleanup.py)",
         "cutover.switch.crossing", "_end", "remove_loose_key"),
        ("a person's own decision, one transaction (tests/streams/test_outbox_conflicts.py)",
         "cutover.cli.quarantine", "_decide", "retry skip"),
        ("a person sets a share of the reads, one transaction (tests/flags/test_by_hand.py)",
         "cutover.flags.by_hand", "change", "set_percentage"),
        # the application's process
        ("only after an answer to COMMIT was lost, one statement (tests/dualwrite/test_lost_answers.py)",
         "cutover.dualwrite.two_sides", "decided", "decide"),
        ("intents that are not forgotten here a relay carries to no effect (tests/streams/test_outbox_kills_at.py)",
         "cutover.dualwrite.two_sides", "_keep_forgetting", "forget"),
        (_BRANCH, "cutover.dualwrite.strong", "_commit", "end"),
        (_BRANCH, "cutover.dualwrite.strong", "_decided", "end"),
        # before the first switch and after the last one
        (_ALONE + " (tests/activities/test_preparation.py)",
         "activities.preparation", "install_fences", "install make_always"),
        (_ALONE + " (tests/switch/test_crossing.py)", "cutover.switch.crossing", "capture", "install_loose_key"),
        (_ALONE + " (tests/streams/test_logical.py, tests/streams/test_outbox.py)",
         "activities.replication", "start_stream", "prepare start"),
        (_ALONE + " (tests/streams/test_logical.py)", "activities.replication", "arm_fences", "make_always"),
        (_ALONE + " (tests/reconcile/test_changed.py)", "activities.replication", "prepare_changed_keys", "prepare"),
        ("tables that an older version made get their columns, IF NOT EXISTS (tests/streams/test_outbox_kills.py)",
         "cutover.streams.outbox.backfill", "_work", "carry_over"),
        ("before the reads move: two idempotent calls of one row each (tests/flags/test_store.py, "
         "tests/streams/test_outbox_conflicts.py)",
         "activities.switching", "set_read_flag", "give_up_nothing set_read_from_new"),
        ("between `cleanup.streams` and `cleanup.ours`, idempotent (tests/activities/test_cleanup.py)",
         "activities.cleanup", "drop_machinery", "drop_origins"),
        ("the record's own run, when all is gone (tests/activities/test_cleanup.py)",
         "activities.cleanup", "record_migration", "drop"),
        ("handed to `in_one_or_singly`, which awaits them in the step `repair.write` (tests/reconcile)",
         "cutover.reconcile.conflicts", "_act", "update delete insert"),
        ("the slot moves behind what was kept (tests/reconcile/test_changed.py: "
         "a_crash_between_keeping_and_advancing_brings_the_keys_again)",
         "cutover.reconcile.changed", "_consume", "advance"),
        # markers
        (_MARKER, "cutover.streams.base", "settling", "put_marker"),
        (_MARKER, "cutover.streams.logical", "lag", "put_marker_on"),
        (_MARKER, "cutover.streams.outbox.stream", "lag", "put_marker_on"),
        (_MARKER, "cutover.reconcile.pace", "_put", "put_marker_on"),
        (_MARKER, "cutover.checklist.streaming", "carries_marker", "put_marker"),
        (_MARKER, "cutover.monitor.flow", "watch_carrying", "put_marker"),
        (_MARKER, "activities.cleanup", "_carried", "put_marker"),
    )
    for called in names.split()
}  # fmt: skip


def steps_in(path: Path) -> list[str]:
    """The names of the steps in a module; of an f-string its literal beginning with a `*`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.step":
            match node.args[0]:
                case ast.Constant(value=str(name)):
                    found.append(name)
                case ast.JoinedStr(values=[ast.Constant(value=str(beginning)), *_]):
                    found.append(f"{beginning}*")
                case other:
                    raise AssertionError(f"{path}: a step is named by a literal, not by {ast.unparse(other)}")
    return found


def test_every_step_that_is_listed_is_in_the_code_and_the_other_way_round() -> None:
    found = {name for path in ROOMS for name in steps_in(path)}
    assert "switch.*" in found, "the section's steps are performed in one place"
    found = (found - {"switch.*"}) | {f"switch.{name}" for name in SECTION}
    assert found == set(faults.STEPS)


@pytest.fixture(scope="module")
def source() -> Source:
    return Source.under(ROOT, "cutover", "activities")


def test_every_effect_stands_between_two_points_or_is_exempt_for_a_reason(source: Source) -> None:
    assert source.bare(frozenset(EXEMPT)) == set()


def test_no_effect_is_exempt_that_stands_in_a_step_or_nowhere(source: Source) -> None:
    assert set(EXEMPT) - source.bare_sites() == set()


FOUND = """
from cutover import faults
from cutover.flags import store
from cutover.postgres import fence

async def covered(stream, connection, service):
    async with faults.step("a.b"):
        await store.flip(connection)
        await helped(connection)
    CALL

async def helped(connection):
    await fence.ensure(connection)
"""


@pytest.mark.parametrize(
    ("call", "bare"),
    [
        ("pass", []),
        ("await store.flip(connection)", ["flip"]),
        ("await stream.drop()", ["drop"]),
        ("await helped(connection)", ["helped"]),
        ("await connection.execute(fence.close_sql([]))", ["close_sql"]),
        ("connection.note(fence.close_sql([]))", []),
        ("pool.drop()", []),
    ],
)
def test_an_effect_outside_of_a_step_is_found_through_the_functions_that_it_stands_in(
    call: str, bare: list[str]
) -> None:
    source = Source({"cutover.protocol": FOUND.replace("CALL", call)})
    assert source.bare() == {Bare("cutover.protocol", "covered", called) for called in bare}
    assert source.bare(frozenset(source.bare())) == set()


def test_an_effect_that_nobody_calls_is_found_where_it_stands() -> None:
    text = "from cutover.flags import store\n\nasync def alone(control):\n    await store.flip(control)\n"
    assert Source({"cutover.alone": text}).bare() == {Bare("cutover.alone", "alone", "flip")}


def test_the_steps_of_a_module_are_read_from_it(tmp_path: Path) -> None:
    path = tmp_path / "protocol.py"
    path.write_text("async def f():\n    async with faults.step('a.b'):\n        await x.flip()\n")
    assert steps_in(path) == ["a.b"]


async def test_points_are_passed_in_their_order_and_not_after_an_error() -> None:
    passed: list[str] = []

    async def note(point: str) -> None:
        passed.append(point)

    async with faults.step("switch.flip"):
        pass
    with faults.armed(note):
        async with faults.step("switch.flip"):
            passed.append("done")
        with pytest.raises(ZeroDivisionError):
            async with faults.step("switch.commit"):
                raise ZeroDivisionError
    async with faults.step("switch.flip"):
        pass
    assert passed == ["switch.flip.before", "done", "switch.flip.after", "switch.commit.before"]


def test_the_doctor_lists_them() -> None:
    result = CliRunner().invoke(app, ["doctor", "--fault-points", "--json"])
    assert [one["point"] for one in json.loads(result.stdout)] == faults.points()
    assert CliRunner().invoke(app, ["doctor"]).exit_code == Exit.WRONG_INPUT
