"""A client's log that a test fills by hand."""

from pathlib import Path

import pytest

from tests.chaos.stories import Story


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client.jsonl"


@pytest.fixture
def story(path: Path) -> Story:
    return Story(path)
