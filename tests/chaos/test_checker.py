"""The checker finds what must not be. Each history here is made by hand, with the twin that must pass."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chaos.checker import NAMES, Verdict, check
from chaos.oplog import Kind, Log, Seen, Write
from chaos.sides import Switch
from chaos.tables import GROUND, Item, Rows, value_of
from cutover.dualwrite.routing import ReadClass
from cutover.errors import ConfigError
from cutover.postgres.databases import Side, other

SERVICE = "eventual"
TO_SERVICE = Switch(1, "service")
TO_MONOLITH = Switch(2, "monolith")


class Story:
    """Writes a client's log; the clock is set by hand, and goes on by a second with each event."""

    def __init__(self, path: Path, run: str = "c0", by: str = "") -> None:
        self.log = Log(path, run=run, by=by, clock=lambda: self.now)
        self.now = 0.0

    def begin(self, *writes: Write, at: float | None = None, side: Side | None = None) -> str:
        """A write is sent."""
        self.now = self.now + 1 if at is None else at
        op = self.log.next_name()
        self.log.note("invoke", op, SERVICE, writes=[write.as_json() for write in writes], side=side)
        return op

    def end(self, event: Any, op: str, *answers: int | None, at: float | None = None, **more: Any) -> str:
        """How it ended."""
        self.now = self.now + 1 if at is None else at
        self.log.note(event, op, SERVICE, answers=answers or None, **more)
        return op

    def tx(self, event: Any, *writes: Write, answers: Sequence[int | None] = (), **more: Any) -> str:
        """Both. `event` None: the client was killed before it knew."""
        op = self.begin(*writes)
        if event is None:
            return op
        return self.end(event, op, *answers, **more)

    def accepted(self, side: Side, begun: float, ended: float) -> str:
        """An event that this side took in that time, with its number as its token and id."""
        number = int(begun * 10)
        op = self.begin(event(f"t{number}"), at=begun)
        return self.end("ok", op, number, at=ended, side=side)

    def look(self, *keys: int, read: ReadClass = "read_your_writes") -> str:
        """A read begins."""
        self.now += 1
        op = self.log.next_name()
        self.log.look(op, SERVICE, read, keys)
        return op

    def seen(self, op: str, *rows: Seen) -> None:
        """What it gave."""
        self.now += 1
        self.log.seen(op, SERVICE, rows)


def write(kind: Kind, key: int, version: int | None = None) -> Write:
    return Write("items", kind, key, version)


def event(token: str) -> Write:
    return Write("events", "insert", 1, token=token)


def row(version: int, origin: str, key: int) -> Item:
    return Item(version, origin, value_of(origin, key))


def rows(*found: tuple[int, int, str], events: dict[str, int] | None = None) -> Rows:
    """(key, version, origin) of items, token → id of events."""
    return Rows(
        {key: row(version, origin, key) for key, version, origin in found},
        {token: (number, 1) for token, number in (events or {}).items()},
    )


def taken(*begun: float) -> Rows:
    """The rows that `accepted` leaves."""
    return rows(events={f"t{int(at * 10)}": int(at * 10) for at in begun})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client.jsonl"


@pytest.fixture
def story(path: Path) -> Story:
    return Story(path)


def verdict(
    path: Path, primary: Rows, *switches: Switch, logs: Sequence[Path] = (), before: Rows | None = None
) -> Verdict:
    side: Side = switches[-1].side if switches else "monolith"
    done = {SERVICE: list(switches)}
    return check([path, *logs], {SERVICE: {side: primary}}, done, {SERVICE: before} if before else None)


def wrong(found: Verdict) -> list[str]:
    assert set(found.violations) <= set(NAMES)
    return sorted(found.violations)


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


# ------------------------------------------------------------------ sides


def test_writes_that_follow_the_switches_pass(story: Story, path: Path) -> None:
    story.accepted("monolith", 1, 2)
    story.accepted("service", 3, 4)
    story.accepted("monolith", 5, 6)
    found = verdict(path, taken(1, 3, 5), TO_SERVICE, TO_MONOLITH)
    assert found.ok
    assert found.counts["switches proved by writes"] == 2


def test_accepted_at_the_target_before_any_switch_is_found(story: Story, path: Path) -> None:
    op = story.accepted("service", 1, 2)
    found = verdict(path, taken(1))
    assert wrong(found) == ["accepted at a fenced side"]
    assert (found.shown[0].op, found.shown[0].key) == (op, "t10")
    assert verdict(path, taken(1), TO_SERVICE).ok


def test_accepted_at_both_sides_without_a_switch_in_between_is_found(story: Story, path: Path) -> None:
    story.accepted("monolith", 1, 2)
    witness = story.accepted("service", 3, 4)
    rogue = story.accepted("monolith", 5, 6)
    found = verdict(path, taken(1, 3, 5), TO_SERVICE)
    assert wrong(found) == ["two writable sides"]
    assert (found.shown[0].op, found.shown[0].witness) == (rogue, witness)
    assert len(found.shown[0].around) == 4


def test_writes_that_overlap_prove_nothing(story: Story, path: Path, tmp_path: Path) -> None:
    late = Story(tmp_path / "late.jsonl", "c1")
    old = late.begin(event("t90"), at=1)
    story.accepted("service", 2, 3)
    late.end("ok", old, 90, at=4, side="monolith")  # it may have been committed before the other one began
    assert verdict(path, taken(2, 9), TO_SERVICE, logs=[late.log.path]).ok


def test_the_time_of_a_switch_proves_what_the_order_alone_does_not(story: Story, path: Path) -> None:
    story.accepted("monolith", 1, 2)
    story.accepted("monolith", 12, 13)
    story.accepted("service", 14, 15)
    left = taken(1, 12, 14)
    assert verdict(path, left, TO_SERVICE).ok
    assert verdict(path, left, Switch(1, "service", begun=5, ended=13.5)).ok
    after = verdict(path, left, Switch(1, "service", begun=5, ended=11))
    assert (wrong(after), after.shown[0].key) == (["accepted at a fenced side"], "t120")
    before = verdict(path, left, Switch(1, "service", begun=16, ended=17))
    assert (wrong(before), before.shown[0].key) == (["accepted at a fenced side"], "t140")


@pytest.mark.parametrize("rogue", [None, *range(12)])
def test_one_rogue_write_among_many_switches_is_found(story: Story, path: Path, rogue: int | None) -> None:
    """Three writes between any two switches; one of them, the middle one, at the wrong side."""
    sides: list[Side] = ["monolith", "service"] * 6
    for turn, side in enumerate(sides):
        for step in range(3):
            at = turn * 10 + step * 2 + 1.0
            story.accepted(other(side) if turn == rogue and step == 1 else side, at, at + 1)
    done = [Switch(number, side) for number, side in enumerate(sides) if number]
    found = verdict(path, taken(*(turn * 10 + step * 2 + 1.0 for turn in range(12) for step in range(3))), *done)
    assert found.ok == (rogue is None), found.violations


def test_every_history_of_one_writable_side_passes(path: Path, story: Story) -> None:
    """Commits inside of their turns, with ends and begins that reach far into the neighbouring ones."""
    commits: list[tuple[float, Side]] = []
    for turn, side in enumerate(itertools.islice(itertools.cycle(("monolith", "service")), 6)):
        commits += [(turn * 10 + step, side) for step in (1.0, 4.0, 8.0)]  # type: ignore[misc]
    lines: list[tuple[float, str]] = []
    for number, (commit, side) in enumerate(commits):
        token, op = f"t{number}", f"c0-{number}"
        for name, at in (("invoke", commit - number % 7 * 1.5), ("ok", commit + number % 5 * 2.5)):
            line: dict[str, Any] = {"event": name, "op": op, "at": at, "service": SERVICE}
            line |= (
                {"writes": [event(token).as_json()]} if name == "invoke" else {"answers": [number + 1], "side": side}
            )
            lines.append((at, json.dumps(line)))
    path.write_text("".join(f"{text}\n" for _, text in sorted(lines, key=lambda line: line[0])))
    done = [Switch(turn, "service" if turn % 2 else "monolith", turn * 10 - 1, turn * 10) for turn in range(1, 6)]
    assert verdict(path, rows(events={f"t{number}": number + 1 for number in range(len(commits))}), *done).ok


def test_switches_that_do_not_follow_from_one_another_are_refused(story: Story, path: Path) -> None:
    story.tx("fail", event("a"))
    with pytest.raises(ConfigError, match="writable already"):
        verdict(path, rows(), TO_SERVICE, Switch(2, "service"))
    with pytest.raises(ConfigError, match="its rows there are not given"):
        check([path], {SERVICE: {"monolith": rows()}}, {SERVICE: [TO_SERVICE]})


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
