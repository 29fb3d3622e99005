"""What preflight finds: each finding says what, where, why it matters, and what to do."""

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["blocking", "advice"]


@dataclass(frozen=True)
class Finding:
    """One finding. `code` is stable and meant for machines; the other texts are for people, without row values."""

    code: str
    severity: Severity
    where: str
    what: str
    why: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class Findings:
    """A growing list of findings; the same finding twice counts once."""

    def __init__(self) -> None:
        self._found: dict[Finding, None] = {}

    def blocking(self, code: str, where: str, what: str, why: str, remedy: str) -> None:
        self._found[Finding(code, "blocking", where, what, why, remedy)] = None

    def advice(self, code: str, where: str, what: str, why: str, remedy: str) -> None:
        self._found[Finding(code, "advice", where, what, why, remedy)] = None

    def sorted(self) -> list[Finding]:
        """Blocking ones first, then by place."""
        return sorted(self._found, key=lambda f: (f.severity != "blocking", f.where, f.code, f.what))


def is_blocked(findings: list[Finding]) -> bool:
    """Whether one of the findings has to be dealt with before the migration may begin."""
    return any(finding.severity == "blocking" for finding in findings)
