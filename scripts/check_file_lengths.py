"""Fail where a Python file of ours has more than 400 lines: it is two modules by then."""

import sys
from pathlib import Path

LIMIT = 400
FOLDERS = ("cutover", "activities", "workflows", "workers", "examples", "bench", "chaos", "deploy", "scripts", "tests")


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    lengths = {
        path.relative_to(root): len(path.read_text().splitlines())
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
    }
    too_long = {path: lines for path, lines in lengths.items() if lines > LIMIT}
    for path, lines in too_long.items():
        print(f"{path}: {lines} lines, at most {LIMIT}", file=sys.stderr)
    if not too_long:
        print(f"{len(lengths)} Python files, none over {LIMIT} lines")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
