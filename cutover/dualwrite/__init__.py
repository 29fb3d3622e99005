"""What an application embeds: a pool that follows its tables. See docs/routed-pool.md."""

from cutover.dualwrite.errors import (
    Fenced,
    HeldTooLong,
    PoolClosed,
    SpansServices,
    TransactionAborted,
    UnknownOutcome,
    WriteInRead,
)
from cutover.dualwrite.routed_pool import PoolStats, RoutedPool
from cutover.dualwrite.routing import ReadClass
from cutover.dualwrite.service_pool import ServicePool

__all__ = [
    "Fenced",
    "HeldTooLong",
    "PoolClosed",
    "PoolStats",
    "ReadClass",
    "RoutedPool",
    "ServicePool",
    "SpansServices",
    "TransactionAborted",
    "UnknownOutcome",
    "WriteInRead",
]
