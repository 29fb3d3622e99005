"""The harness's mutants, their checks and their page belong together; `make chaos-mutants` runs them."""

import ast
import re

import pytest

from chaos.mutants import MUTANTS
from scripts.mutants import ROOT, Mutant, mutated

PAGE = ROOT / "docs/chaos-mutants.md"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_still_finds_its_lines_and_its_check_and_is_on_the_page(mutant: Mutant) -> None:
    for file, text in mutated(ROOT, mutant).items():
        assert text != (ROOT / file).read_text()
        ast.parse(text)
    path, _, name = mutant.test.partition("::")
    function = name.partition("[")[0]
    assert f"def {function}(" in (ROOT / path).read_text()
    re.compile(mutant.says)
    page = PAGE.read_text()
    assert f"| {mutant.name} |" in page
    assert f"{function}" in page


def test_no_two_mutants_have_one_name_and_the_page_has_no_other() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(names)
