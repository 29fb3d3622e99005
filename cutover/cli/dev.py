"""`cutover dev`: the development stack of real servers on this machine, without docker."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from cutover.cli.failing import ended, plainly, print_json
from cutover.devstack.stack import Stack
from cutover.errors import Exit

app = typer.Typer(no_args_is_help=True, help="Real servers on this machine: Temporal and two PostgreSQL clusters.")


def _say(text: str) -> None:
    typer.echo(f"  {text}", err=True)


def _stack() -> Stack:
    return Stack(say=_say)


@app.command()
@plainly()
def up() -> None:
    """Start the stack, or repair it: what has died is started again, what runs is left alone."""
    _stack().up()


@app.command()
@plainly()
def down() -> None:
    """Stop every process of the stack; the data stays."""
    _stack().down()


@app.command()
@plainly()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what runs, with pids, ports and log files; the exit status is 0 if everything does, else 3."""
    stack = _stack()
    servers = stack.status()
    everything = all(server.state == "running" for server in servers)
    if as_json:
        facts = {
            "running": everything,
            "home": str(stack.home.folder),
            "data": str(stack.home.data),
            "env_file": str(stack.env_file),
            "servers": [asdict(server) for server in servers],
        }
        print_json(facts)
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
        raise typer.Exit(Exit.UNREACHABLE)


@app.command()
@plainly()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Stop the stack and delete all its data: databases, workflows, the env file."""
    stack = _stack()
    if not yes:
        if not sys.stdin.isatty():
            raise ended(f"this deletes {stack.home.data}; say --yes to mean it", Exit.WRONG_INPUT)
        typer.confirm(f"Delete all data of the development stack in {stack.home.data}?", abort=True)
    stack.reset()
