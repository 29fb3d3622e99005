"""The nearest known name for a mistyped one, for messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'Trades'?`, or '' where nothing is near. A name that differs in capitals alone comes first."""
    candidates = sorted(set(known))
    same = [k for k in candidates if k.casefold() == name.casefold()]
    bare = name.rpartition(".")[2].casefold()
    elsewhere = [k for k in candidates if k.rpartition(".")[2].casefold() == bare]
    near = same or elsewhere or get_close_matches(name, candidates, n=1, cutoff=0.7)
    return f"did you mean {' or '.join(repr(k) for k in near[:3])}?" if near else ""
