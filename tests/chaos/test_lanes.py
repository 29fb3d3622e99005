"""A client that is started again knows from its log what it may work on."""

from pathlib import Path

from chaos.lanes import Row, recall
from tests.chaos.stories import SERVICE, Story, event, write


def test_a_client_recalls_its_rows_and_leaves_those_of_unknown_writes_alone(tmp_path: Path) -> None:
    story = Story(tmp_path / "client.jsonl")
    assert recall(story.log.path) == {}
    story.tx("ok", write("insert", 1, 1), event("a"), answers=[1, 7])
    story.tx("ok", write("insert", 2, 1), answers=[1])
    story.tx("ok", write("delete", 2, 2), answers=[2])
    story.tx("fail", write("insert", 2, 3), reason="HeldTooLong")
    story.tx("ok", write("increment", -1), answers=[1])
    story.tx("unknown", write("insert", 3, 1))
    story.tx("ok", write("insert", 4, 1), answers=[1])
    story.tx(None, write("update", 4, 2), write("insert", 5, 1))
    assert recall(story.log.path) == {
        SERVICE: {
            1: Row(1, True),
            2: Row(2, False),
            3: Row(0, False, retired=True),
            4: Row(1, True, retired=True),
            5: Row(0, False, retired=True),
        }
    }
