"""The checker finds what must not be. Each log here is made by hand, and so is what the database is said to hold."""

from pathlib import Path

import pytest

from cutover.errors import ConfigError
from examples.ai_trader.check import Found, Verdict, judge
from examples.ai_trader.history import read
from examples.ai_trader.oplog import Action, Event, OpLog, Reference, Write
from examples.ai_trader.tables import TABLES, Key

Rows = dict[Reference, tuple[int, str]]


class Story:
    """Writes a log as a client would, one transaction after the other."""

    def __init__(self, path: Path, run: str = "c0") -> None:
        self.log = OpLog(path, run=run)

    def tx(self, event: Event | None, *writes: Write, reason: str = "") -> None:
        """`event` None: the client was killed before it knew. A `key` is what the answer brings."""
        keys = [write.key for write in writes]
        for write in writes:
            if write.action == "insert" and isinstance(write.key, int):
                write.key = None
        tx = self.log.invoke(writes)
        if event is not None:
            for write, key in zip(writes, keys, strict=True):
                write.key = key if event == "ok" or write.action != "insert" else None
            self.log.outcome_now(event, tx, writes, reason)


def write(action: Action, key: Key, revision: int, table: str = "trades", **more: list[Reference]) -> Write:
    token = f"order-{key}" if action == "insert" else ""
    return Write(table, action, key, revision, token, more.get("cascade", ()), more.get("may_cascade", ()))


def verdict(path: Path, rows: Rows) -> Verdict:
    found = {}
    for name in TABLES:
        mine = {key: value for (table, key), value in rows.items() if table == name}
        tokens = {key: token for key, (_, token) in mine.items()}
        found[name] = Found({k: r for k, (r, _) in mine.items()}, tokens, {t: k for k, t in tokens.items()})
    return judge(read([path]), found)


def trade(key: int, revision: int) -> Rows:
    return {("trades", key): (revision, f"order-{key}")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client.jsonl"


@pytest.fixture
def story(path: Path) -> Story:
    return Story(path)


def test_rows_as_they_were_acknowledged_pass(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    story.tx("ok", write("update", 1, 1))
    story.tx("ok", write("insert", 2, 0))
    story.tx("ok", write("delete", 2, 0))
    found = verdict(path, trade(1, 1))
    assert found.ok
    assert found.rows_checked == 2


def test_an_acknowledged_insert_that_is_not_there_is_lost(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    assert verdict(path, {}).violations == {"lost": 1}


def test_an_acknowledged_update_that_is_not_there_is_stale(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    story.tx("ok", write("update", 1, 1))
    story.tx("ok", write("update", 1, 2))
    assert verdict(path, trade(1, 1)).violations == {"stale": 1}


def test_an_update_of_a_generated_row_that_is_not_there_is_stale(story: Story, path: Path) -> None:
    story.tx("ok", write("update", 7, 1))
    assert verdict(path, trade(7, 0)).violations == {"stale": 1}


def test_a_deleted_row_that_is_there_again_is_resurrected(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    story.tx("ok", write("delete", 1, 0))
    assert verdict(path, trade(1, 0)).violations == {"resurrected": 1}


def test_a_row_ahead_of_all_writes_is_unexplained(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    assert verdict(path, trade(1, 3)).violations == {"unexplained": 1}


def test_an_insert_that_failed_and_is_there_is_found(story: Story, path: Path) -> None:
    story.tx("fail", write("insert", 1, 0))
    assert verdict(path, {}).ok
    assert verdict(path, trade(1, 0)).violations == {"failed write is there": 1}


def test_a_fenced_update_that_was_done_is_found(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    story.tx("fenced", write("update", 1, 1))
    assert verdict(path, trade(1, 0)).ok
    assert verdict(path, trade(1, 1)).violations == {"unexplained": 1}


@pytest.mark.parametrize("event", ["unknown", None])
def test_an_unknown_write_may_be_done_or_not_and_nothing_else(story: Story, path: Path, event: Event | None) -> None:
    story.tx("ok", write("insert", 1, 0))
    story.tx("ok", write("update", 1, 1))
    story.tx(event, write("update", 1, 2))
    story.tx(event, write("insert", 2, 0))
    done, not_done = verdict(path, trade(1, 2) | trade(2, 0)), verdict(path, trade(1, 1))
    assert done.ok
    assert (done.unknown_done, done.unknown_not_done) == (2, 0)
    assert not_done.ok
    assert (not_done.unknown_done, not_done.unknown_not_done) == (0, 2)
    assert verdict(path, trade(1, 0)).violations == {"stale": 1}
    assert verdict(path, {}).violations == {"lost": 1}


def test_an_unknown_update_of_a_generated_row_cannot_lose_it(story: Story, path: Path) -> None:
    story.tx("unknown", write("update", 7, 4))
    assert verdict(path, trade(7, 3)).ok
    assert verdict(path, trade(7, 4)).ok
    assert verdict(path, trade(7, 2)).violations == {"stale": 1}
    assert verdict(path, {}).violations == {"lost": 1}


def test_an_unknown_delete_may_be_done_or_not(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    story.tx("unknown", write("delete", 1, 0))
    assert verdict(path, {}).ok
    assert verdict(path, trade(1, 0)).ok


def test_a_part_of_an_unknown_transaction_is_torn(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 5, 0, "positions"))
    story.tx(None, write("insert", 1, 0), write("update", 5, 1, "positions"))
    before: Rows = {("positions", 5): (0, "order-5")}
    after: Rows = {("positions", 5): (1, "order-5")}
    assert verdict(path, before).ok
    assert verdict(path, after | trade(1, 0)).ok
    assert verdict(path, after).violations == {"torn transaction": 1}
    assert verdict(path, before | trade(1, 0)).violations == {"torn transaction": 1}


def test_the_cascade_inside_a_service_must_have_happened(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", "d", 0, "ai_decisions"), write("insert", ("d", "rsi"), 0, "ai_decision_features"))
    story.tx("ok", write("delete", "d", 0, "ai_decisions", cascade=[("ai_decision_features", ("d", "rsi"))]))
    assert verdict(path, {}).ok
    left: Rows = {("ai_decision_features", ("d", "rsi")): (0, "order-('d', 'rsi')")}
    assert verdict(path, left).violations == {"resurrected": 1}


def test_the_cascade_between_services_may_have_happened_but_gives_no_older_row(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 9, 0, "users"))
    story.tx("ok", write("insert", 1, 0))
    story.tx("ok", write("update", 1, 1))
    story.tx("ok", write("delete", 9, 0, "users", may_cascade=[("trades", 1)]))
    assert verdict(path, {}).ok
    assert verdict(path, trade(1, 1)).ok
    assert verdict(path, trade(1, 0)).violations == {"stale": 1}


def test_a_key_given_to_two_inserts_is_found(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    again = write("insert", 1, 0)
    again.token = "order-again"
    story.tx("ok", again)
    assert verdict(path, {("trades", 1): (0, "order-again")}).violations == {"key given twice": 1}


def test_an_update_that_met_no_row_and_a_stale_read_are_violations(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    story.tx("fail", write("update", 1, 1), reason="LostUpdate")
    look = [write("update", 1, -1)]
    story.log.outcome_now("stale-read", story.log.name(look), look)
    assert verdict(path, trade(1, 0)).violations == {"lost update": 1, "stale read": 1}


def test_a_line_torn_by_a_kill_is_passed_over_and_the_next_life_begins_a_new_one(story: Story, path: Path) -> None:
    story.tx("ok", write("insert", 1, 0))
    with path.open("a") as file:
        file.write('{"op":"c0-2.0","tx":"c0-2","at":17')
    Story(path, run="c0-again").tx("ok", write("update", 1, 1))
    found = verdict(path, trade(1, 1))
    assert found.ok
    assert found.torn_lines == 1


def test_a_file_that_is_no_log_is_refused_with_its_line(path: Path) -> None:
    path.write_text('{"hello": 1}\n')
    with pytest.raises(ConfigError, match=r"client\.jsonl:1: not a line of a client's log"):
        read([path])
    with pytest.raises(ConfigError, match="cannot be read"):
        read([path.with_name("missing")])
