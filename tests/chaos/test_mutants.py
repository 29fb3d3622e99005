"""The harness's mutants, their checks and their page belong together; `make chaos-mutants` runs them."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.mutants import MUTANTS
from scripts.mutants import ROOT, Mutant, is_caught, mutated
from scripts.mutants_dualwrite import MUTANTS as PROVED

PAGE = ROOT / "docs/chaos-mutants.md"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_still_finds_its_lines_and_its_check_and_is_on_the_page(mutant: Mutant) -> None:
    for file, text in mutated(ROOT, mutant).items():
        assert text != (ROOT / file).read_text()
        ast.parse(text)
    path, _, name = mutant.test.partition("::")
    function = name.partition("[")[0]
    assert f"def {function}(" in (ROOT / path).read_text()
    page = PAGE.read_text()
    assert f"| {mutant.name} |" in page
    assert f"{function}" in page


def test_no_two_mutants_have_one_name_and_the_page_has_no_other() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(names)


@pytest.mark.parametrize("mutant", [*MUTANTS, *PROVED], ids=lambda mutant: mutant.name)
def test_each_mutant_is_caught_by_words_of_its_own(mutant: Mutant) -> None:
    for anything in ("", "assert", "AssertionError", "AssertionError: assert False", "TimeoutError", "Failed:"):
        assert not re.search(mutant.says, anything)


@pytest.mark.parametrize("error", ["NameError", "ImportError", "SyntaxError", "AttributeError", "cutover.x.TypeError"])
def test_an_error_of_the_patch_itself_catches_no_mutant(error: str) -> None:
    mutant = replace(MUTANTS[0], says="id given twice")
    assert is_caught(mutant, "AssertionError: id given twice")
    assert not is_caught(mutant, f"{error}: id given twice")
    assert not is_caught(mutant, "cutover.errors.NotYet: not within 10 s")


def test_no_patch_names_what_is_not_there(tmp_path: Path) -> None:
    for number, mutant in enumerate([*MUTANTS, *PROVED]):
        for file, text in mutated(ROOT, mutant).items():
            (tmp_path / f"m{number}_{file.replace('/', '_')}").write_text(text)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821,F822,F823"]
    found = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
