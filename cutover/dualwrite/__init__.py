"""What an application embeds: a pool that follows its tables. See docs/routed-pool.md."""

from cutover.dualwrite.errors import (
    AnswerLost,
    Fenced,
    HeldTooLong,
    PartlyDone,
    PoolClosed,
    SecondaryAway,
    SecondaryRefused,
    SpansServices,
    TransactionAborted,
    UnknownOutcome,
    WriteInRead,
)
from cutover.dualwrite.repository import DualWriteRepository, RepositorySettings
from cutover.dualwrite.routed_pool import PoolStats, RoutedPool
from cutover.dualwrite.routing import ReadClass
from cutover.dualwrite.service_pool import ServicePool
from cutover.streams.outbox.janitor import Janitor

__all__ = [
    "AnswerLost",
    "DualWriteRepository",
    "Fenced",
    "HeldTooLong",
    "Janitor",
    "PartlyDone",
    "PoolClosed",
    "PoolStats",
    "ReadClass",
    "RepositorySettings",
    "RoutedPool",
    "SecondaryAway",
    "SecondaryRefused",
    "ServicePool",
    "SpansServices",
    "TransactionAborted",
    "UnknownOutcome",
    "WriteInRead",
]
