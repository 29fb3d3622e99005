"""What a caller of RoutedPool meets, beside PostgreSQL's own errors.

    CutoverError
    ├── NotYet
    │   ├── Fenced              the database refused the write: this side is not the writable one; nothing was done
    │   ├── HeldTooLong         held during a switch for longer than its limit; nothing was sent
    │   └── SecondaryAway       strong: the other side is away or busy just now; nothing was done at either
    ├── Refused
    │   ├── SecondaryRefused    strong: the other side refuses the rows themselves; nothing was done at either
    │   ├── SpansServices       one transaction wanted the tables of two services
    │   ├── WriteInRead         a statement that writes was called a `stale_ok` read
    │   └── PoolClosed          the pool was used after `close`
    ├── Unreachable (base)      the database could not be reached within the pool's patience; nothing was done
    ├── TransactionAborted      COMMIT was answered with ROLLBACK: an error inside was swallowed; nothing was done
    ├── PartlyDone              a switch came into a block of `acquire`, or into a statement that commits on its way:
    │                           what was committed before stands
    ├── AnswerLost              the write was done, and only its answer (rows, a count) was lost with the connection
    └── UnknownOutcome          the connection died while the write was under way: done or not done, nobody knows

`retryable` is true where nothing was done and the same call may succeed later.
"""

from cutover.errors import CutoverError, NotYet, Refused

__all__ = [
    "AnswerLost",
    "Fenced",
    "HeldTooLong",
    "PartlyDone",
    "PoolClosed",
    "SecondaryAway",
    "SecondaryRefused",
    "SpansServices",
    "TransactionAborted",
    "UnknownOutcome",
    "WriteInRead",
]


class Fenced(NotYet):
    """The fence refused the write and the route did not change in time; nothing was done."""

    retryable = True


class HeldTooLong(NotYet):
    """The request waited for a switch to end and reached the pause's limit; nothing was sent."""

    retryable = True


class SecondaryAway(NotYet):
    """The other side of a strong write is away or busy; nothing was done at either side, the same may succeed later."""

    retryable = True


class SecondaryRefused(Refused):
    """The other side refuses the rows of a strong write (a constraint, a value); nothing was done at either side."""

    retryable = False


class SpansServices(Refused):
    """A transaction on one service's tables was asked for inside a transaction on another's."""

    retryable = False


class WriteInRead(Refused):
    """A statement that writes was given as a read that may be stale."""

    retryable = False


class PoolClosed(Refused):
    """The pool has been closed."""

    retryable = False


class TransactionAborted(CutoverError):
    """An error inside the transaction was swallowed, so PostgreSQL rolled it back at COMMIT."""

    retryable = False


class PartlyDone(CutoverError):
    """A switch came into a block of `acquire`: what its earlier statements committed stands, what they read may be old.

    Or into a statement by itself that may commit on its way: CALL, DO, a text with COMMIT in it.
    Never to be done again as a whole.
    """

    retryable = False


class AnswerLost(CutoverError):
    """The write was done, once; what it returned was lost. Never to be done again: read what is needed by its key."""

    retryable = False


class UnknownOutcome(CutoverError):
    """The write may or may not have been done: read it back by its key before doing it again."""

    retryable = False
