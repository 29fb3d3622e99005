"""The checker finds what must not be. Each history here is made by hand, with the twin that must pass."""

import json
from pathlib import Path

import pytest

from chaos.checker import check
from chaos.register import Register, State
from chaos.tables import GROUND, Item, Rows, value_of
from cutover.errors import ConfigError
from tests.chaos.stories import SERVICE, Story, event, rows, verdict, write, wrong

# ------------------------------------------------------------------ lost and resurrected


def test_rows_as_acknowledged_pass_and_a_missing_one_is_lost(story: Story, path: Path) -> None:
    op = story.tx("ok", write("insert", 1, 1), answers=[1])
    assert verdict(path, rows((1, 1, op))).ok
    assert wrong(verdict(path, rows())) == ["acknowledged write lost"]


def test_an_acknowledged_update_that_is_not_there_is_lost(story: Story, path: Path) -> None:
    first = story.tx("ok", write("insert", 1, 1), answers=[1])
    second = story.tx("ok", write("update", 1, 2), answers=[2])
    assert verdict(path, rows((1, 2, second))).ok
    assert wrong(verdict(path, rows((1, 1, first)))) == ["acknowledged write lost"]


def test_a_write_whose_answer_alone_was_lost_is_acknowledged(story: Story, path: Path) -> None:
    op = story.tx("ok", write("insert", 1, 1), reason="AnswerLost")
    story.tx("ok", event("a"), reason="AnswerLost")
    assert verdict(path, rows((1, 1, op), events={"a": 9})).ok
    assert verdict(path, rows()).violations == {"acknowledged write lost": 2}


def test_an_unknown_write_may_be_there_or_not(story: Story, path: Path) -> None:
    first = story.tx("ok", write("insert", 1, 1), answers=[1])
    second = story.tx("unknown", write("update", 1, 2))
    killed = story.tx(None, write("insert", 2, 1))
    assert verdict(path, rows((1, 1, first))).ok
    found = verdict(path, rows((1, 2, second), (2, 1, killed)))
    assert found.ok
    assert found.counts["unknown done"] == 2
    assert wrong(verdict(path, rows((1, 3, second)))) == ["unexplained row"]


def test_a_deleted_row_that_is_there_again_is_found(story: Story, path: Path) -> None:
    first = story.tx("ok", write("insert", 1, 1), answers=[1])
    story.tx("ok", write("delete", 1, 2), answers=[2])
    assert verdict(path, rows()).ok
    assert wrong(verdict(path, rows((1, 1, first)))) == ["deleted row back"]


def test_an_insert_that_meets_the_deleted_row_finds_it_back(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 1), answers=[1])
    story.tx("ok", write("delete", 1, 2), answers=[2])
    again = story.tx("ok", write("insert", 1, 3), answers=[3])
    assert verdict(path, rows((1, 3, again))).ok
    met = story.tx("fail", write("insert", 2, 1), reason="UniqueViolationError 23505 eventual_items_pkey")
    found = verdict(path, rows((1, 3, again)))
    assert wrong(found) == ["deleted row back"]
    assert (found.shown[0].key, found.shown[0].op) == (2, met)


def test_a_refused_write_that_is_there_is_unexplained(story: Story, path: Path) -> None:
    op = story.tx("fail", write("insert", 1, 1), reason="HeldTooLong")
    fenced = story.tx("fenced", event("a"), reason="FencedError CU001")
    assert verdict(path, rows()).ok
    assert wrong(verdict(path, rows((1, 1, op)))) == ["unexplained row"]
    assert wrong(verdict(path, rows(events={"a": 1}))) == ["unexplained row"]
    assert fenced != op


def test_a_row_that_no_log_names_is_unexplained_but_for_the_ground(story: Story, path: Path) -> None:
    story.tx("fail", event("a"))
    assert verdict(path, rows((-1_000_001, 1, GROUND))).ok
    assert wrong(verdict(path, rows((5, 1, "somebody")))) == ["unexplained row"]


def test_rows_that_were_there_before_have_to_stay_or_be_written(story: Story, path: Path) -> None:
    before = rows((1, 4, "old"), (2, 2, "old"), (-1, 3, "old"), events={"old": 7})
    changed = story.tx("ok", write("update", 1, 5), answers=[5])
    counted = story.tx("ok", write("increment", -1), answers=[4])
    after = rows((1, 5, changed), (2, 2, "old"), (-1, 4, counted), events={"old": 7})
    assert verdict(path, after, before=before).ok
    found = verdict(path, rows((1, 4, "old"), (-1, 3, "old")), before=before)
    assert found.violations == {"acknowledged write lost": 4}


def test_a_row_with_a_value_of_another_write_is_found(story: Story, path: Path) -> None:
    op = story.tx("ok", write("insert", 1, 1), answers=[1])
    mixed = Rows({1: Item(1, op, value_of("another", 1))})
    assert wrong(verdict(path, mixed)) == ["row of two writes"]


def test_a_write_that_did_not_meet_its_row_is_a_lost_update(story: Story, path: Path) -> None:
    op = story.tx("ok", write("insert", 1, 1), answers=[1])
    story.tx("fail", write("update", 1, 2), reason="LockNotAvailable")
    assert verdict(path, rows((1, 1, op))).ok
    story.tx("fail", write("update", 1, 2), reason="Missed", missed=1)
    assert wrong(verdict(path, rows((1, 1, op)))) == ["lost update"]


# ------------------------------------------------------------------ versions


def test_a_later_write_has_a_higher_version(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 3), answers=[3])
    higher = story.tx("ok", write("update", 1, 4), answers=[4])
    assert verdict(path, rows((1, 4, higher))).ok
    story.tx("ok", write("update", 1, 4), answers=[4])
    assert wrong(verdict(path, rows((1, 4, higher)))) == ["versions not monotone"]


def test_an_answer_with_another_version_is_found(story: Story, path: Path) -> None:
    op = story.tx("ok", write("insert", 1, 1), answers=[2])
    assert wrong(verdict(path, rows((1, 1, op)))) == ["versions not monotone"]


def test_increments_rise_whoever_makes_them(story: Story, path: Path, tmp_path: Path) -> None:
    neighbour = Story(tmp_path / "neighbour.jsonl", "c1")
    one = story.begin(write("increment", -1), at=1)
    two = neighbour.begin(write("increment", -1), at=1.5)
    neighbour.end("ok", two, 2, at=2)
    story.end("ok", one, 1, at=3)  # at the same time: either may be first
    logs = [neighbour.log.path]
    assert verdict(path, rows((-1, 2, two)), logs=logs).ok
    late = story.begin(write("increment", -1), at=4)
    story.end("ok", late, 3, at=5)
    assert verdict(path, rows((-1, 3, late)), logs=logs).ok
    assert wrong(verdict(path, rows((-1, 2, two)), logs=logs)) == ["acknowledged write lost"]
    neighbour.end("ok", neighbour.begin(write("increment", -1), at=6), 3, at=7)
    assert wrong(verdict(path, rows((-1, 3, late)), logs=logs)) == ["acknowledged write lost", "lost update"]


def test_an_increment_that_does_not_rise_is_found(story: Story, path: Path) -> None:
    story.tx("ok", write("increment", -1), answers=[2])
    story.tx("ok", write("increment", -1), answers=[1])
    assert "versions not monotone" in wrong(verdict(path, rows((-1, 2, "c0-1"))))


def test_an_increment_that_was_done_twice_is_found(story: Story, path: Path) -> None:
    story.tx("ok", write("increment", -1), answers=[1])
    lost = story.tx("ok", write("increment", -1), reason="AnswerLost")
    unknown = story.tx("unknown", write("increment", -1))
    assert verdict(path, rows((-1, 2, lost))).ok
    assert verdict(path, rows((-1, 3, unknown))).ok
    assert wrong(verdict(path, rows((-1, 1, "c0-1")))) == ["acknowledged write lost"]
    assert wrong(verdict(path, rows((-1, 4, unknown)))) == ["increment done twice"]


# ------------------------------------------------------------------ reads


def test_a_read_that_gives_less_than_was_acknowledged_is_stale(story: Story, path: Path, tmp_path: Path) -> None:
    first = story.tx("ok", write("insert", 1, 1), answers=[1])
    second = story.tx("ok", write("update", 1, 2), answers=[2])
    reader = Story(tmp_path / "reader.jsonl", "c1")
    reader.now = story.now
    reader.seen(reader.look(1), (1, 2, second))
    logs, left = [reader.log.path], rows((1, 2, second))
    assert verdict(path, left, logs=logs).ok
    reader.seen(reader.look(1), (1, 1, first))
    reader.seen(reader.look(1))
    assert verdict(path, left, logs=logs).violations == {"stale read": 2}


def test_a_read_that_began_before_the_acknowledgement_may_give_either(story: Story, path: Path) -> None:
    first = story.tx("ok", write("insert", 1, 1), answers=[1])
    second = story.begin(write("update", 1, 2))
    older, newer = story.look(1), story.look(1)
    story.end("ok", second, 2)
    story.seen(older, (1, 1, first))
    story.seen(newer, (1, 2, second))
    assert verdict(path, rows((1, 2, second))).ok
    story.seen(story.look(1), (1, 1, first))
    assert wrong(verdict(path, rows((1, 2, second)))) == ["stale read"]


def test_a_read_may_see_a_write_before_its_client_hears_of_it(story: Story, path: Path) -> None:
    op = story.begin(write("insert", 1, 1))
    story.seen(story.look(1), (1, 1, op))
    assert verdict(path, rows((1, 1, op))).ok
    # what was read at the primary is committed: now it is lost, though its writer was never told
    assert wrong(verdict(path, rows())) == ["acknowledged write lost"]
    story.seen(story.look(1))
    assert wrong(verdict(path, rows((1, 1, op)))) == ["stale read"]


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_a_read_gave_before_it_was_acknowledged_is_there_to_stay_unless_reads_go_to_both_sides(
    mirrored: bool,
) -> None:
    row = Register.of(Item(1, GROUND, ""), mirrored=mirrored)
    row.invoked("op", write("update", 7, 2))
    assert row.read(State(2, True, "op"), row.floor, stale_ok=False) is None
    wrong = row.read(State(1, True, GROUND), row.floor, stale_ok=False)
    assert (wrong is None) == mirrored
    assert row.acknowledged("op", write("update", 7, 2), 2, State(1, True, GROUND)) is None
    stale = row.read(State(1, True, GROUND), row.floor, stale_ok=False)
    assert stale is not None
    assert stale.name == "stale read"


def test_a_deleted_row_is_read_as_absent_and_not_as_it_was(story: Story, path: Path) -> None:
    first = story.tx("ok", write("insert", 1, 1), answers=[1])
    gone = story.begin(write("delete", 1, 2))
    early = story.look(1)
    story.seen(early)
    story.end("ok", gone, 2)
    story.seen(story.look(1))
    assert verdict(path, rows()).ok
    story.seen(story.look(1), (1, 1, first))
    assert wrong(verdict(path, rows())) == ["stale read"]


def test_a_row_that_was_deleted_and_made_again_during_a_read_may_be_absent_in_it(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 1), answers=[1])
    early = story.look(1)
    story.tx("ok", write("delete", 1, 2), answers=[2])
    again = story.tx("ok", write("insert", 1, 3), answers=[3])
    late = story.look(1)
    story.seen(early)
    assert verdict(path, rows((1, 3, again))).ok
    story.seen(late)
    assert wrong(verdict(path, rows((1, 3, again)))) == ["stale read"]


def test_a_stale_ok_read_may_be_behind_but_gives_only_what_was_written(story: Story, path: Path) -> None:
    first = story.tx("ok", write("insert", 1, 1), answers=[1])
    second = story.tx("ok", write("update", 1, 2), answers=[2])
    left = rows((1, 2, second))
    story.seen(story.look(1, read="stale_ok"), (1, 1, first))
    story.seen(story.look(1, read="stale_ok"))
    assert verdict(path, left).ok
    story.seen(story.look(1, read="stale_ok"), (1, 3, "nobody"))
    assert wrong(verdict(path, left)) == ["unexplained row"]


def test_a_read_that_failed_says_nothing(story: Story, path: Path) -> None:
    op = story.tx("ok", write("insert", 1, 1), answers=[1])
    story.end("fail", story.look(1), reason="HeldTooLong")
    found = verdict(path, rows((1, 1, op)))
    assert found.ok
    assert found.counts["reads failed"] == 1


# ------------------------------------------------------------------ transactions, ids, both sides


def test_an_unknown_transaction_is_there_wholly_or_not_at_all(story: Story, path: Path) -> None:
    made = story.tx("ok", write("insert", 2, 1), answers=[1])
    gone = story.tx("ok", write("insert", 3, 1), answers=[1])
    op = story.tx("unknown", write("insert", 1, 1), write("update", 2, 2), write("delete", 3, 2), event("a"))
    assert verdict(path, rows((2, 1, made), (3, 1, gone))).ok
    assert verdict(path, rows((1, 1, op), (2, 2, op), events={"a": 1})).ok
    torn = [
        rows((1, 1, op), (2, 2, op)),
        rows((2, 2, op), events={"a": 1}),
        rows((1, 1, op), (2, 1, made), events={"a": 1}),
        rows((1, 1, op), (2, 2, op), (3, 1, gone), events={"a": 1}),
    ]
    for left in torn:
        assert wrong(verdict(path, left)) == ["transaction torn"]


def test_an_id_that_was_given_twice_is_found(story: Story, path: Path) -> None:
    story.tx("ok", event("a"), answers=[1])
    story.tx("ok", event("b"), answers=[2])
    assert verdict(path, rows(events={"a": 1, "b": 2})).ok
    assert wrong(verdict(path, rows(events={"a": 2, "b": 1}))) == ["id given twice"]
    story.tx("ok", event("c"), answers=[2])
    assert wrong(verdict(path, rows(events={"a": 1, "c": 2}))) == ["id given twice"]
    assert wrong(verdict(path, rows(events={"a": 1, "b": 2}))) == ["id given twice"]


def test_a_sequence_that_stayed_behind_is_found(story: Story, path: Path) -> None:
    story.tx("fail", event("a"), reason="UniqueViolationError 23505 eventual_events_pkey")
    assert wrong(verdict(path, rows())) == ["id given twice"]


def test_both_sides_have_to_be_alike(story: Story, path: Path) -> None:
    op = story.tx("ok", write("insert", 1, 1), answers=[1])
    story.tx("ok", event("a"), answers=[5])
    primary = rows((1, 1, op), events={"a": 5})
    behind = [rows((1, 1, op)), rows(events={"a": 5}), rows((1, 1, op), events={"a": 6})]
    for follower, alike in [(primary, True), *((rows_, False) for rows_ in behind)]:
        found = check([path], {SERVICE: {"monolith": primary, "service": follower}}, {})
        assert wrong(found) == ([] if alike else ["sides differ"])


# ------------------------------------------------------------------ logs


def test_the_lines_around_a_violation_are_shown(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 9, 1), answers=[1])
    story.tx("ok", write("insert", 1, 1), answers=[1])
    story.tx("ok", write("update", 1, 2), answers=[2])
    found = verdict(path, rows((1, 1, "c0-2"), (9, 1, "c0-1")))
    (violation,) = found.shown
    assert [json.loads(line)["op"] for line in violation.around] == ["c0-2", "c0-2", "c0-3", "c0-3"]
    assert json.loads(json.dumps(found.as_json()))["violations"] == {"acknowledged write lost": 1}


def test_a_line_that_a_killed_client_left_half_written_counts_for_nothing(story: Story, path: Path) -> None:
    op = story.tx("ok", write("insert", 1, 1), answers=[1])
    half = story.tx(None, write("insert", 2, 1))
    text = path.read_text()
    path.write_text(text[:-20])
    again = Story(path, "c0.again")
    again.now = story.now
    third = again.tx("ok", write("insert", 3, 1), answers=[1])
    found = verdict(path, rows((1, 1, op), (3, 1, third)))
    assert found.ok
    assert found.counts["torn lines"] == 1
    assert wrong(verdict(path, rows((1, 1, op), (2, 1, half), (3, 1, third)))) == ["unexplained row"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"event": "invoke"}\n', "not a line of a client's log"),
        ('{"event": "ok", "op": "x", "at": 1, "service": "nobody"}\n', "not a line of a client's log"),
        ('{"event": "ok", "op": "x", "at": 1, "service": "eventual"}\n', "and not its begin"),
        ('{"event": "look", "op": "x", "at": 2, "service": "eventual"}\n' * 2 + '{"event": "seen", "op": "x", "at": 1, '
         '"service": "eventual"}\n', "the clock went back"),
    ],
)  # fmt: skip
def test_what_is_no_log_is_refused(path: Path, text: str, match: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        verdict(path, rows())


def test_a_log_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        verdict(path, rows())
