"""Who PostgreSQL runs as, and folders that this account can use.

Rule: `postgres` and `initdb` refuse to run as root (PostgreSQL manual, 18.1 "The PostgreSQL User Account"), so
root starts them as the system user `postgres`, made if it is not there. Every parent folder of what that user
needs must be passable by it, hence /var/tmp and not the checkout.
"""

import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cutover.errors import ConfigError

SYSTEM_USER = "postgres"


@dataclass(frozen=True)
class Account:
    """A system account to start processes as; ids are None where it is simply ourselves."""

    uid: int | None = None
    gid: int | None = None

    @property
    def other(self) -> bool:
        """Whether this is another account than our own."""
        return self.uid is not None


OURSELVES = Account()


def server_account() -> Account:
    """The account that PostgreSQL runs as: ourselves, or for root the system user `postgres`.

    Raises ConfigError where root has no such user and none can be made.
    """
    if os.geteuid() != 0:
        return OURSELVES
    try:
        user = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        user = _create_system_user()
    return Account(user.pw_uid, user.pw_gid)


def _create_system_user() -> pwd.struct_passwd:
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if useradd is None:
        raise ConfigError(
            f"PostgreSQL refuses to run as root and there is no user {SYSTEM_USER!r}: "
            "create one, or run this as an ordinary user"
        )
    made = subprocess.run(
        [useradd, "--system", "--user-group", "--shell", "/bin/false", SYSTEM_USER],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return pwd.getpwnam(SYSTEM_USER)  # also when another process of ours made it first
    except KeyError:
        raise ConfigError(f"system user {SYSTEM_USER!r} could not be made: {made.stderr.strip()}") from None


def own_folder(path: Path, mode: int = 0o755) -> Path:
    """Make a folder of ours, or check the one there.

    In a folder where all may write (/var/tmp), a name can be taken by somebody else beforehand: a link or a
    folder of another user is refused with ConfigError, never used.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=mode)
        path.chmod(mode)  # whatever the umask
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigError(f"{path} is not a folder of yours: remove it, or ask its owner to") from None
    return path


def give(path: Path, account: Account) -> Path:
    """Make a folder the account's own, readable by nobody else (PostgreSQL asks for 0700)."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    if account.uid is not None and account.gid is not None:
        os.chown(path, account.uid, account.gid)
    return path
