"""The page of proofs, its mutants and its tests belong together; `make prove-dualwrite` runs them."""

import ast
import re

import pytest

from scripts.mutants import ROOT, Mutant, mutated
from scripts.mutants_dualwrite import MUTANTS

PAGE = ROOT / "docs/dual-write-proofs.md"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_still_finds_its_line_and_its_test_and_is_on_the_page(mutant: Mutant) -> None:
    for file, text in mutated(ROOT, mutant).items():
        assert text != (ROOT / file).read_text()
        ast.parse(text)
    path, _, name = mutant.test.partition("::")
    function = name.partition("[")[0]
    assert f"async def {function}(" in (ROOT / path).read_text()
    page = PAGE.read_text()
    assert mutant.name in page
    assert name in page


def test_the_page_names_no_test_that_is_not_proved() -> None:
    named = set(re.findall(r"`[OD]/\w+\.py::(\S+)`", PAGE.read_text()))
    assert named == {mutant.test.partition("::")[2] for mutant in MUTANTS}
