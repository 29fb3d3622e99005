"""What the README and docs/ show exists: commands with their options, make targets, links."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from cutover.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"^ {4,}(cutover [^\n]+)|`(cutover [^`]+)`", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def shown_commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for match in COMMAND.finditer(page.read_text()):
            text = " ".join((match[1] or match[2]).split())
            if re.match(r"cutover [a-z]", text):
                found.append((page.name, text))
    return found


@pytest.mark.parametrize(("page", "text"), shown_commands())
def test_a_command_that_is_shown_exists_with_its_options(page: str, text: str) -> None:
    words = shlex.split(text.replace("…", ""))[1:]
    command: Any = typer.main.get_command(app)  # typer brings a click of its own
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"{page}: {text}"
        command = command.commands[name]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in options, f"{page}: {text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= targets
