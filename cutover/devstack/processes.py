"""Processes that outlive the command that started them: start, recognise, stop. By their pid only, never by a name.

A pid alone proves nothing, because the system gives numbers out again: a process is ours when its command
line holds the token (a path that only this stack uses) with which it was started.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cutover.devstack.accounts import Account
from cutover.errors import ConfigError

POLL = 0.02
LOG_BYTES = 20_000_000


def command_line(pid: int) -> list[str]:
    """The arguments of a living process; empty where it is gone, dead but not collected, or not readable."""
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            return [part.decode(errors="replace") for part in proc.read_bytes().split(b"\0") if part]
        except OSError:
            return []
    shown = subprocess.run(["ps", "-o", "stat=,args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, arguments = shown.stdout.strip().partition(" ")
    return [] if not state or state.startswith("Z") else arguments.split()


def is_ours(pid: int, token: str) -> bool:
    """Whether that pid is a living process started with `token` among its arguments."""
    return any(token in part for part in command_line(pid))


def working_in(folder: Path) -> list[int]:
    """The pids of living processes whose working folder is `folder`: servers' children left behind.

    Linux only (`/proc`); elsewhere empty.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == str(folder):
                found.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return found


def find(*parts: str) -> int | None:
    """The pid of a living process of ours with all these arguments, for when a pid file was never written.

    Linux only (`/proc`); elsewhere None.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        arguments = command_line(int(entry.name))
        if all(part in arguments for part in parts):
            return int(entry.name)
    return None


def start(
    arguments: Sequence[str], *, log: Path, account: Account, environment: Mapping[str, str], folder: Path
) -> int:
    """Start a process in a session of its own, so that it survives us; its output is appended to `log`. The pid."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_name(log.name + ".1"))
    # Not through a link: the folder may belong to the servers' account while we are root.
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o640), "ab") as output:
        process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
            env=dict(environment),
            user=account.uid,
            group=account.gid,
            extra_groups=[] if account.other else None,
        )
    # For a moment after its start a process has no arguments to show, and would be taken for a dead one.
    wait_until(lambda: bool(command_line(process.pid)) or process.poll() is not None, 5)
    # Collects the exit status while we live (no zombie), and holds the object so that nothing warns about it.
    threading.Thread(target=process.wait, name=f"wait-{process.pid}", daemon=True).start()
    return process.pid


def signal_ours(pid: int, token: str, number: int) -> None:
    """Send a signal if the process is still there and ours."""
    if is_ours(pid, token):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll a condition until it holds (True) or the time is over (False)."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def stop(pid: int, token: str, steps: Sequence[tuple[int, float]]) -> None:
    """Stop one process: each signal in turn, with the seconds to wait after it. Raises ConfigError if it stays."""
    for number, seconds in steps:
        signal_ours(pid, token, number)
        if wait_until(lambda: not is_ours(pid, token), seconds):
            return
    names = ", ".join(signal.Signals(number).name for number, _ in steps)
    raise ConfigError(f"process {pid} did not end after {names}; look at it with `ps -fp {pid}`")


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, for an error message."""
    if not log.exists():
        return "(no output)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
