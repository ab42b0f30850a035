"""What pyproject.toml cannot say: the compiled build, for those who ask for it with ``GALVANIC_COMPILE=1``.

The same source, with the hot modules that pyproject.toml names turned into C by mypyc (docs/operations.md). This file
is the build backend, too, so that only who asks for it has mypy downloaded; without the variable it adds nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from setuptools import build_meta, setup
from setuptools.build_meta import *  # noqa: F403 - what a build backend has

if TYPE_CHECKING:
    from setuptools import Extension

VARIABLE: Final = "GALVANIC_COMPILE"
PROJECT: Final = Path("pyproject.toml")
"""Of the directory where the build runs, as for setuptools itself."""

_METADATA: Final = frozenset(("egg_info", "dist_info", "sdist"))
"""Commands that compile nothing."""

_OPTIONS: Final = (
    # The result must not depend on what else is installed: other packages are not looked at, they have no types here.
    # The strict check with all types is `make lint`.
    "--config-file=",
    "--no-site-packages",
    "--ignore-missing-imports",
    "--follow-imports=silent",
    "--explicit-package-bases",
)


def is_asked() -> bool:
    """Whether this build is to be compiled. Ends the program when the variable says neither yes nor no."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        sys.exit(f"{VARIABLE} is {value!r}: set it to 1 for a compiled build, or leave it out")
    return value == "1"


def settings() -> dict[str, Any]:
    """``modules``: the files that are compiled; ``requires``: what only that takes."""
    found: dict[str, Any] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["tool"]["galvanic"]["compiled"]
    return found


def obstacle(environment: Mapping[str, str] = os.environ) -> str:
    """What this machine lacks to compile, and what to do about it; empty if nothing."""
    command = (environment.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(command, path=environment.get("PATH")) is None:
        return f"there is no C compiler {command!r}: install one (Debian: apt-get install gcc libc6-dev) or set CC"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return f"Python.h of {sys.executable} is missing: install the headers (Debian: apt-get install {version}-dev)"
    return ""


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What pip installs to build a wheel."""
    if is_asked():
        return list(settings()["requires"])
    found: list[str] = build_meta.get_requires_for_build_wheel(config_settings)
    return found


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """An editable installation is of the source as it is edited."""
    if is_asked():
        sys.exit(f"{VARIABLE} does not go with an editable installation: leave out -e, or the variable")
    found: list[str] = build_meta.get_requires_for_build_editable(config_settings)
    return found


def _extensions() -> list[Extension]:
    # setuptools runs this file for the metadata, too, before mypy is there and once more when it is.
    if not is_asked() or not _METADATA.isdisjoint(sys.argv):
        return []
    missing = obstacle()
    if missing:
        sys.exit(f"{VARIABLE}=1: {missing}; or build without {VARIABLE}, which is never needed")
    from mypyc.build import mypycify

    extensions: list[Extension] = mypycify([*_OPTIONS, *settings()["modules"]], opt_level="3")
    return extensions


if __name__ == "__main__":
    setup(ext_modules=_extensions())
