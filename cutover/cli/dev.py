"""`cutover dev`: the development stack of real servers on this machine, without docker."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from cutover.devstack.stack import Stack
from cutover.errors import CutoverError

app = typer.Typer(no_args_is_help=True, help="Real servers on this machine: Temporal and two PostgreSQL clusters.")


def _say(text: str) -> None:
    typer.echo(f"  {text}", err=True)


def _stack() -> Stack:
    return Stack(say=_say)


def _fail(error: CutoverError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(1)


@app.command()
def up() -> None:
    """Start the stack, or repair it: what has died is started again, what runs is left alone."""
    try:
        _stack().up()
    except CutoverError as error:
        raise _fail(error) from None


@app.command()
def down() -> None:
    """Stop every process of the stack; the data stays."""
    try:
        _stack().down()
    except CutoverError as error:
        raise _fail(error) from None


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what runs, with pids, ports and log files; the exit status is 0 if everything does."""
    try:
        stack = _stack()
        servers = stack.status()
    except CutoverError as error:
        raise _fail(error) from None
    everything = all(server.state == "running" for server in servers)
    if as_json:
        facts = {
            "running": everything,
            "home": str(stack.home.folder),
            "data": str(stack.home.data),
            "env_file": str(stack.env_file),
            "servers": [asdict(server) for server in servers],
        }
        typer.echo(json.dumps(facts, indent=2))
    else:
        table = Table("server", "state", "pid", "port", Column("log", overflow="fold"), box=None, pad_edge=False)
        for server in servers:
            colour = {"running": "green", "starting": "yellow", "stopped": "red"}[server.state]
            table.add_row(
                server.name,
                f"[{colour}]{server.state}[/]",
                str(server.pid or "-"),
                str(server.port),
                server.log,
            )
        console = Console()
        console.print(table)
        console.print(f"web page {servers[0].url}   env file {stack.env_file}")
        if not everything:
            console.print("start or repair it with: cutover dev up")
    if not everything:
        raise typer.Exit(3)


@app.command()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Stop the stack and delete all its data: databases, workflows, the env file."""
    try:
        stack = _stack()
        if not yes:
            if not sys.stdin.isatty():
                typer.echo(f"error: this deletes {stack.home.data}; say --yes to mean it", err=True)
                raise typer.Exit(2)
            typer.confirm(f"Delete all data of the development stack in {stack.home.data}?", abort=True)
        stack.reset()
    except CutoverError as error:
        raise _fail(error) from None
