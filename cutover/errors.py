"""The errors of cutover, as one small tree.

    CutoverError                  everything below; its text is written for a person
    ├── PlanError                 the plan file is wrong (file, line, field, remedy)
    ├── ConfigError               the surroundings are wrong: no DSN, no binary, a port in use
    ├── Refused                   what was asked for is not allowed now; asking again will not help
    │   ├── GateClosed            a gate's evidence or approval does not hold
    │   ├── PlanReplaced          a person adopted another plan; what was asked for was asked under the former
    │   ├── StaleAttempt          a newer attempt of the same switch has taken over
    │   └── Conflict              somebody else's object or run stands in the way
    ├── NotYet                    expected to pass by itself: a lag, a lock, a lease; try again later
    └── Unreachable               a database or server cannot be reached just now

A message says what was wrong, where, and what to do next. It never holds a DSN or a value of a row.
"""


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
