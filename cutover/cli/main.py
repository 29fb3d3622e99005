"""The command line `cutover`."""

import typer

from cutover import __version__
from cutover.cli import (
    conflicts,
    dev,
    diff,
    doctor,
    flags,
    fleet,
    operations,
    plan,
    preflight,
    quarantine,
    reconcile,
    runs,
    status,
    watch,
)

app = typer.Typer(
    name="cutover",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Take the tables of a living monolithic PostgreSQL database into one database per service.",
)
app.add_typer(dev.app, name="dev")
app.add_typer(plan.app, name="plan")
app.add_typer(conflicts.app, name="conflicts")
app.add_typer(flags.app, name="flags")
app.add_typer(quarantine.app, name="quarantine")
app.command("preflight")(preflight.preflight)
for command in (
    operations.setup,
    operations.worker,
    runs.start,
    status.status,
    watch.watch,
    runs.approve,
    runs.reject,
    runs.pause,
    runs.resume,
    runs.rollback,
    runs.retry,
    runs.skip,
    reconcile.reconcile,
    diff.diff,
    runs.history,
    doctor.doctor,
    fleet.fleet,
):
    app.command(command.__name__)(command)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
