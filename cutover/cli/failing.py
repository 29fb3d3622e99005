"""How commands end: 0 done, 1 refused or not in order, 2 wrong input, 3 a server does not answer.

No stack trace reaches a person who made a typing mistake or whose server is down.
"""

import asyncio
import getpass
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import asyncpg
import typer
from temporalio.client import RPCError, RPCStatusCode, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import WorkflowAlreadyStartedError

from cutover.errors import ConfigError, CutoverError, PlanError, Unreachable

T = TypeVar("T")

REFUSED, WRONG_INPUT, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine; errors become a text on stderr and an exit status."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        typer.echo("stopped; what runs on the servers goes on, and this command can be given again", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (PlanError, ConfigError) as error:
        raise ended(str(error), WRONG_INPUT) from None
    except Unreachable as error:
        raise ended(str(error), UNREACHABLE) from None
    except CutoverError as error:
        raise ended(str(error), REFUSED) from None
    except WorkflowAlreadyStartedError as error:
        raise ended(f"{error.workflow_id} runs already; see it with: cutover status", REFUSED) from None
    except (WorkflowUpdateFailedError, WorkflowFailureError) as error:
        raise ended(str(error.cause), REFUSED) from None
    except RPCError as error:
        raise ended(*_rpc(error)) from None
    except (OSError, asyncpg.PostgresError) as error:
        raise ended(f"a server does not answer ({type(error).__name__})", UNREACHABLE) from None


def ended(text: str, status: int) -> typer.Exit:
    """Prints the text to stderr; the exception that ends the command."""
    typer.echo(f"error: {text}", err=True)
    return typer.Exit(status)


def _rpc(error: RPCError) -> tuple[str, int]:
    if error.status == RPCStatusCode.NOT_FOUND:
        return "no such run; list them with: cutover status", REFUSED
    if error.status in (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED):
        return "the Temporal server does not answer; is it up (cutover dev status), is TEMPORAL_ADDRESS right?", 3
    return f"Temporal refused: {error.message}", REFUSED


def login(by: str) -> str:
    """Who acts: what was given, or the login."""
    if by:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry, as in many containers
        raise ended("your login is not known here; say who you are with --by NAME", WRONG_INPUT) from None


def print_json(facts: Any) -> None:
    """JSON as all commands print it."""
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
