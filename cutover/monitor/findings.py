"""What the permanent monitor finds: plain values, without a row or a secret, each with the deed that helps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from cutover.alerts.store import Alert, Severity

#: What is watched. `unreadable`: something of it could not be looked at, which counts as a finding (invariant 6).
Watch = Literal[
    "writable-side",
    "rogue-writer",
    "fence",
    "slot",
    "stream",
    "way-back",
    "in-doubt",
    "sequences",
    "unreadable",
]
WATCHES: tuple[Watch, ...] = get_args(Watch)
_IMPORTANCE: tuple[Severity, ...] = ("critical", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `remedy` is the one command or deed that helps, `subject` tells it from its like."""

    watch: Watch
    severity: Severity
    service: str
    subject: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.service}: {self.text}: {self.remedy}"

    def alert(self, migration: str) -> Alert:
        """What people are told. One kind for each watch."""
        return Alert(
            self.watch, self.severity, migration, self.service, f"{self.text}: {self.remedy}", subject=self.subject
        )


def by_importance(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, in a fixed order."""
    return sorted(
        findings,
        key=lambda one: (_IMPORTANCE.index(one.severity), one.service, WATCHES.index(one.watch), one.subject),
    )
