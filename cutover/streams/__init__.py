"""Streams: what carries changes from source to target."""

from cutover.streams.opening import open_stream

__all__ = ["open_stream"]
