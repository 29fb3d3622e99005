"""Mutants: variants of the source with a remedy taken out, which a check has to catch.

Whoever lists them says which test has to fail. In a copy of the source all tests have to pass first as it is; then
each mutant's test has to fail, by what it asserts: not by its set-up, and not by an error of the patch itself.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Seconds for one run of pytest.
_LIMIT = 3600
#: Errors of source that was mended badly, not of a remedy that is missing.
_BY_THE_PATCH = re.compile(
    r"(\w+\.)*(NameError|UnboundLocalError|SyntaxError|IndentationError|ImportError|ModuleNotFoundError|AttributeError"
    r"|TypeError)\b"
)
#: Characters of what a test said that are printed.
_SHOWN = 600


@dataclass(frozen=True)
class Edit:
    """`old` occurs once in `file`, `new` stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A remedy that is taken out: by one edit, and by `more` where it takes several.

    `says`: a regular expression for what the test has to say, so that it fails for this reason and no other.
    """

    name: str
    test: str
    says: str
    file: str
    old: str
    new: str
    more: tuple[Edit, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        return (Edit(self.file, self.old, self.new), *self.more)


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant: whether its test failed, what the test said, and seconds."""

    mutant: Mutant
    caught: bool
    said: str
    seconds: float


def mutated(root: Path, mutant: Mutant) -> dict[str, str]:
    """The text of each file that the mutant changes. Raises ValueError where a line is not there once."""
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        text = texts.get(edit.file) or (root / edit.file).read_text()
        if (found := text.count(edit.old)) != 1:
            raise ValueError(
                f"{mutant.name}: a line of it stands {found} times in {edit.file}; write the mutant anew: {edit.old!r}"
            )
        texts[edit.file] = text.replace(edit.old, edit.new)
    return texts


def copy(to: Path) -> None:
    """What git knows of, and what is new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def failed(folder: Path, tests: Iterable[str]) -> tuple[int, str]:
    """How many tests failed in the copy, and the first reason; set-up that fails is an error of ours.

    What fails while a failed test is cleared away is no matter.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", "--tb=line", *tests],
        cwd=folder, capture_output=True, text=True, timeout=_LIMIT, env={**os.environ, "COLUMNS": "10000"},
    )  # fmt: skip
    reason = re.search(r"^FAILED .*? - (.*)$", done.stdout, re.MULTILINE)
    count = re.search(r"(\d+) failed", done.stdout)
    broken = re.search(r"^ERROR ", done.stdout, re.MULTILINE) and not count
    if done.returncode not in (0, 1) or broken:
        raise RuntimeError(f"pytest could not run {', '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return int(count[1]) if count else 0, reason[1] if reason else ""


def chosen(mutants: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    """Those that are named, all where none is. Raises ValueError for a name that there is not."""
    if unknown := sorted(set(names) - {mutant.name for mutant in mutants}):
        raise ValueError(f"there is no mutant {unknown[0]!r}; there are: {', '.join(one.name for one in mutants)}")
    return [mutant for mutant in mutants if not names or mutant.name in names]


def is_caught(mutant: Mutant, said: str) -> bool:
    """Whether a test that failed with these words has caught the mutant, and not an error of its patch."""
    return _BY_THE_PATCH.match(said) is None and re.search(mutant.says, said) is not None


def run(mutants: Sequence[Mutant]) -> list[Verdict] | None:
    """Tries one after the other and prints what was found; None where a test fails without a mutant."""
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="cutover-mutants-") as temporary:
        folder = Path(temporary)
        copy(folder)
        tests = sorted({mutant.test for mutant in mutants})
        count, reason = failed(folder, tests)
        if count:
            print(f"the tests fail without a mutant: {reason}")
            return None
        print(f"{len(tests)} tests pass as they should; now {len(mutants)} mutants", flush=True)
        for mutant in mutants:
            verdicts.append(_try(folder, mutant))
    return verdicts


def _try(folder: Path, mutant: Mutant) -> Verdict:
    texts = mutated(folder, mutant)
    sound = {file: (folder / file).read_text() for file in texts}
    begun = time.monotonic()
    try:
        for file, text in texts.items():
            (folder / file).write_text(text)
        count, said = failed(folder, [mutant.test])
    finally:
        for file, text in sound.items():
            (folder / file).write_text(text)
    seconds = time.monotonic() - begun
    caught = count > 0 and is_caught(mutant, said)
    shown = said if len(said) <= _SHOWN else f"{said[:_SHOWN]} …"
    print(f"{'caught' if caught else 'SURVIVED':8}  {mutant.name}  ({seconds:.0f} s) {shown}", flush=True)
    return Verdict(mutant, caught, said, seconds)
