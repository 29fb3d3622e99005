"""Logging of the worker and the command line: one line a record, as text or JSON, without DSNs and row values."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TextIO

from opentelemetry import trace

from cutover.telemetry.redaction import describe, scrub


class RedactingFilter(logging.Filter):
    """Rewrites a record before any handler formats it; never drops one."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.args = _clean_arguments(record.args)
        try:
            record.msg = scrub(record.getMessage())
        except (TypeError, ValueError):
            # arguments that do not fit the text: the text alone is shown, logging itself would print both
            record.msg = scrub(str(record.msg))
        record.args = None
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = render(record.exc_info[1])
        return True


def _clean_arguments(arguments: object) -> tuple[object, ...] | dict[str, object] | None:
    """Errors among the arguments are described; others stay as they are, for `%d` and the like."""
    if isinstance(arguments, dict):
        return {key: describe(v) if isinstance(v, BaseException) else v for key, v in arguments.items()}
    if isinstance(arguments, tuple):
        return tuple(describe(v) if isinstance(v, BaseException) else v for v in arguments)
    return None


def render(error: BaseException) -> str:
    """A traceback with frames and kinds of errors, and without the texts of a driver's errors."""
    lines: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = "".join(traceback.format_tb(current.__traceback__))
        name = f"{type(current).__module__}.{type(current).__qualname__}"
        lines.append(f"Traceback (most recent call last):\n{scrub(frames)}{name}: {describe(current)}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\nThe above exception was the cause of the following one:\n\n".join(reversed(lines))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the trace that was open."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_text:
            entry["exception"] = record.exc_text
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            entry["trace_id"] = f"{context.trace_id:032x}"
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(json: bool = False, *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Replaces the root logger's handlers. A filter of the handler sees the records of every library."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(RedactingFilter())
    handler.setFormatter(
        JsonFormatter() if json else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    # one line a request would drown what matters, and its address may carry credentials
    logging.getLogger("httpx").setLevel(logging.WARNING)
