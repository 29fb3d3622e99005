"""How commands end: the statuses of `cutover.errors.Exit`, with one line on stderr.

No stack trace reaches a person who made a typing mistake or whose server is down.
"""

import asyncio
import getpass
import json
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import asyncpg
import typer
from temporalio.client import (
    RPCError,
    RPCStatusCode,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from typer.exceptions import TyperException

from cutover.errors import CutoverError, Exit, exit_status
from cutover.postgres.databases import CONNECTION_ERRORS
from cutover.telemetry.logs import render

T = TypeVar("T")

_log = logging.getLogger(__name__)

AWAY = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)

#: How typer itself ends a command: usage errors (2), `abort` (1), `Exit`.
_TYPER = (typer.Exit, typer.Abort, TyperException)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine; errors become a text on stderr and an exit status."""
    with plainly():
        return asyncio.run(work)


@contextmanager
def plainly() -> Iterator[None]:
    """Any error of the block (or of the function it decorates) becomes a text on stderr and an exit status."""
    try:
        yield
    except _TYPER:
        raise
    except KeyboardInterrupt:
        typer.echo("stopped; what runs on the servers goes on, and this command can be given again", err=True)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except Exception as error:
        text, status = judged(error)
        if status == Exit.MISTAKE:
            _log.debug("%s", render(error))
        raise ended(text, status) from None


def judged(error: Exception) -> tuple[str, Exit]:
    """What a person is told about an error, and the status that the command ends with."""
    match error:
        case CutoverError():
            return str(error), exit_status(error)
        case WorkflowAlreadyStartedError():
            return f"{error.workflow_id} runs already; see it with: cutover status PLAN", Exit.REFUSED
        case WorkflowUpdateFailedError() | WorkflowFailureError():
            return str(error.cause), Exit.REFUSED
        case RPCError():
            return _rpc(error)
        case WorkflowUpdateRPCTimeoutOrCancelledError():
            return "the Temporal server did not answer in time; see `cutover status PLAN`", Exit.UNREACHABLE
        case _ if isinstance(error, (*CONNECTION_ERRORS, asyncpg.PostgresError)):
            return f"a server does not answer ({type(error).__name__})", Exit.UNREACHABLE
        case _:
            # its text could hold anything, so it is not shown
            return f"a mistake in cutover itself: {type(error).__name__}; please report it", Exit.MISTAKE


def ended(text: str, status: int) -> typer.Exit:
    """Prints the text to stderr; the exception that ends the command."""
    typer.echo(f"error: {text}", err=True)
    return typer.Exit(status)


def _rpc(error: RPCError) -> tuple[str, Exit]:
    if error.status == RPCStatusCode.NOT_FOUND:
        return "no such run; list them with: cutover status PLAN", Exit.REFUSED
    if error.status in AWAY:
        text = "the Temporal server does not answer; is it up (cutover dev status), is TEMPORAL_ADDRESS right?"
        return text, Exit.UNREACHABLE
    return f"Temporal refused: {error.message}", Exit.REFUSED


def login(by: str) -> str:
    """Who acts: what was given, or the login."""
    if by:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry, as in many containers
        raise ended("your login is not known here; say who you are with --by NAME", Exit.WRONG_INPUT) from None


def print_json(facts: Any) -> None:
    """JSON as all commands print it."""
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
