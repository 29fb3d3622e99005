"""The errors of cutover, as one small tree.

    CutoverError                  everything below; its text is written for a person
    ├── PlanError                 the plan file is wrong (file, line, field, remedy)
    ├── ConfigError               the surroundings are wrong: no DSN, no binary, a port in use
    ├── Refused                   what was asked for is not allowed now; asking again will not help
    │   ├── GateClosed            a gate's evidence or approval does not hold
    │   │   ├── ApprovalLapsed    what had been approved is not approved any more at the flip
    │   │   └── AnotherServer     a server is another one than noted: its last commits may be missing
    │   ├── PlanReplaced          a person adopted another plan; what was asked for was asked under the former
    │   ├── StaleAttempt          a newer attempt of the same switch has taken over
    │   └── Conflict              somebody else's object or run stands in the way
    ├── NotYet                    expected to pass by itself: a lag, a lock, a lease; try again later
    └── Unreachable               a database or server cannot be reached just now

A message says what was wrong, where, and what to do next. It never holds a DSN or a value of a row.

`Exit` is how every command ends, and `exit_status` which error ends it how; docs/operations.md shows the same table.
"""

from enum import IntEnum


class Exit(IntEnum):
    """The exit statuses of all commands and of the worker."""

    #: Done; what was looked at is in order.
    DONE = 0
    #: Refused, or what was looked at is not in order.
    REFUSED = 1
    #: Wrong input or surroundings: an option, the plan, a DSN, a port in use. Nothing was changed.
    WRONG_INPUT = 2
    #: A server or a worker does not answer just now.
    UNREACHABLE = 3
    #: A mistake in cutover itself.
    MISTAKE = 70
    INTERRUPTED = 130


class CutoverError(Exception):
    """Base of all errors that cutover raises on purpose."""


class PlanError(CutoverError):
    """The plan cannot be used; the text lists every problem with file, line and field."""


class ConfigError(CutoverError):
    """The surroundings are not as they have to be, and a person has to change them."""


class Refused(CutoverError):
    """The request is understood and not allowed in the present state."""


class GateClosed(Refused):
    """A gate's evidence or approval does not hold."""


class ApprovalLapsed(GateClosed):
    """Approvals expired or were withdrawn between the gate and the flip; the gate has to be approved again."""


class AnotherServer(GateClosed):
    """A server or its timeline is another one than the evidence came from; a person has to look and accept it."""


class PlanReplaced(Refused):
    """The migration goes by another plan now, which a person adopted in place of the one that was named."""


class StaleAttempt(Refused):
    """A newer attempt owns this switch; this one must stop without another effect."""


class Conflict(Refused):
    """An object or run of somebody else stands in the way."""


class NotYet(CutoverError):
    """A condition does not hold yet; it is expected to hold later."""


class Unreachable(CutoverError):
    """A database or server does not answer just now."""


def exit_status(error: CutoverError) -> Exit:
    """How a command ends that met this error."""
    match error:
        case PlanError() | ConfigError():
            return Exit.WRONG_INPUT
        case Unreachable():
            return Exit.UNREACHABLE
        case _:
            return Exit.REFUSED
