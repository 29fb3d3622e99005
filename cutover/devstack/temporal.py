"""Temporal's server as one binary: where it comes from.

In this order: `CUTOVER_TEMPORAL_CLI`, `temporal` on the PATH if new enough, the copy in the user's cache, the
SDK's download, a build from the Go module in tools/temporal. What was fetched or built goes into the cache, under
a name with the hash of go.sum, atomically and under a lock: two runs at once neither tear it nor do it twice.

    python -m cutover.devstack.temporal --ensure      prints the binary's path
"""

import argparse
import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cutover.errors import ConfigError, CutoverError

Say = Callable[[str], None]

CLI_VERSION = "v1.9.1"
#: The oldest server with everything that workflows and tests use (updates, time skipping).
OLDEST_SERVER = (1, 32)
DOWNLOAD_SECONDS = 30.0
OLDEST_GO = (1, 26, 8)
GO_PACKAGE = "github.com/temporalio/cli/cmd/temporal"
MODULE = Path(__file__).parents[2] / "tools" / "temporal"

REMEDY = (
    f"Install the Temporal CLI (server {OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or newer) on the PATH, "
    "or name it in CUTOVER_TEMPORAL_CLI"
)


def say_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def server_version(binary: Path) -> tuple[int, int] | None:
    """The version of the server inside a Temporal CLI; None where it cannot be asked.

    A release prints `temporal version 1.9.1 (Server 1.32.0, …)`, a build of ours `0.0.0-DEV (Server 1.32.0, …)`.
    """
    try:
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"Server v?(\d+)\.(\d+)", shown.stdout + shown.stderr)
    return (int(found[1]), int(found[2])) if found else None


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The user's cache folder of cutover."""
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or str(Path.home())) / ".cache")
    return Path(base) / "cutover"


def cached_binary(environ: Mapping[str, str], module: Path = MODULE) -> Path:
    """Where the cached binary is, or would be."""
    sums = module / "go.sum"
    key = hashlib.sha256(sums.read_bytes()).hexdigest()[:12] if sums.is_file() else CLI_VERSION
    return cache_folder(environ) / f"temporal-{key}"


def ensure(environ: Mapping[str, str] | None = None, say: Say = say_to_stderr, module: Path = MODULE) -> Path:
    """The path of a Temporal binary that is new enough; fetched or built where there is none yet.

    `say` is told what takes time, and how long it took. Raises ConfigError with what to install.
    """
    environ = os.environ if environ is None else environ
    if named := environ.get("CUTOVER_TEMPORAL_CLI"):
        version = server_version(Path(named))
        if version is None or version < OLDEST_SERVER:
            found = "is not a Temporal CLI" if version is None else f"has server {version[0]}.{version[1]}"
            raise ConfigError(
                f"CUTOVER_TEMPORAL_CLI={named} {found}; server {OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or newer is needed"
            )
        return Path(named)
    on_path = shutil.which("temporal", path=environ.get("PATH"))
    if on_path and (server_version(Path(on_path)) or (0, 0)) >= OLDEST_SERVER:
        return Path(on_path)
    cached = cached_binary(environ, module)
    if os.access(cached, os.X_OK):
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    with _locked(cached.with_name(cached.name + ".lock"), say):
        if not os.access(cached, os.X_OK):
            _provide(cached, environ, say, module)
    return cached


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Temporal: another run is providing the server; waiting for it …")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _provide(cached: Path, environ: Mapping[str, str], say: Say, module: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=cached.name + ".", dir=cached.parent))
    try:
        started = time.monotonic()
        say(f"Temporal: downloading CLI {CLI_VERSION} (at most {DOWNLOAD_SECONDS:.0f} s) …")
        made = _download(scratch)
        if made is None:
            say(
                "Temporal: the download is not possible here; building it with Go instead "
                "(5 to 8 minutes the first time on 2 cores, seconds with a warm Go cache) …"
            )
            started = time.monotonic()
            made = _build(scratch, environ, module)
        version = server_version(made)
        if version is None or version < OLDEST_SERVER:
            raise ConfigError(f"the Temporal binary that was made reports {version}. {REMEDY}.")
        made.chmod(0o755)
        made.rename(cached)
        say(f"Temporal: ready after {time.monotonic() - started:.0f} s, kept in {cached}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(scratch: Path) -> Path | None:
    """Let the SDK fetch the CLI: it does so when it starts a server, so one is started for a moment."""
    from temporalio.testing import WorkflowEnvironment

    async def fetch() -> None:
        async with asyncio.timeout(DOWNLOAD_SECONDS):
            environment = await WorkflowEnvironment.start_local(
                dev_server_download_version=CLI_VERSION, download_dest_dir=str(scratch)
            )
        await environment.shutdown()

    try:
        asyncio.run(fetch())
    except (RuntimeError, TimeoutError, OSError):
        return None  # no network, a proxy, a slow line: the build comes next, and the person is told
    binaries = [path for path in scratch.iterdir() if path.is_file() and os.access(path, os.X_OK)]
    return binaries[0] if binaries else None


def _go_version(go: str, environ: Mapping[str, str]) -> tuple[tuple[int, ...], bool]:
    """Go's version, and whether it may fetch a newer toolchain by itself (Go 1.21 and later, GOTOOLCHAIN=auto)."""

    def ask(*arguments: str) -> str:
        shown = subprocess.run(
            [go, *arguments], capture_output=True, text=True, env=dict(environ), cwd="/", timeout=60, check=False
        )
        return shown.stdout.strip()

    found = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", ask("version"))
    version = tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    return version, version >= (1, 21, 0) and "auto" in ask("env", "GOTOOLCHAIN")


def _build(scratch: Path, environ: Mapping[str, str], module: Path) -> Path:
    wanted = ".".join(map(str, OLDEST_GO))
    if not (module / "go.mod").is_file():
        raise ConfigError(f"Temporal's server is missing, and could not be downloaded. {REMEDY}.")
    go = shutil.which("go", path=environ.get("PATH"))
    if go is None:
        raise ConfigError(
            f"Temporal's server is missing, could not be downloaded, and there is no Go to build it with. "
            f"{REMEDY}; or install Go {wanted} or newer."
        )
    version, may_fetch = _go_version(go, environ)
    if version < OLDEST_GO and not may_fetch:
        raise ConfigError(
            f"Go {'.'.join(map(str, version))} ({go}) is too old to build Temporal's server: {wanted} or newer is "
            f"needed (or GOTOOLCHAIN=auto, which lets Go fetch it). {REMEDY}."
        )
    binary = scratch / "temporal"
    built = subprocess.run(
        [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, GO_PACKAGE],
        cwd=module,
        env={**environ, "CGO_ENABLED": "0"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if built.returncode:
        raise ConfigError(f"`go build` of Temporal's server in {module} failed:\n{built.stderr[-2000:]}\n{REMEDY}.")
    return binary


def main() -> int:
    """Provide the binary and print its path; a clear text and status 1 where it cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m cutover.devstack.temporal", description="The Temporal binary.")
    parser.add_argument("--ensure", action="store_true", required=True, help="find, fetch or build it; print its path")
    parser.parse_args()
    try:
        print(ensure())
    except CutoverError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
