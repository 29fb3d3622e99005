"""The `outbox` stream: intents captured in the writer's own transaction, carried over by relays."""

from cutover.streams.outbox.backfill import Backfill
from cutover.streams.outbox.carrying import carrying
from cutover.streams.outbox.relay import Relay
from cutover.streams.outbox.stream import OutboxStream

__all__ = ["Backfill", "OutboxStream", "Relay", "carrying"]
