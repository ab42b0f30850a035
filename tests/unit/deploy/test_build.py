"""The compiled build (setup.py): what it is made of, and what it says when it cannot be made."""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common.build import BUILD, COMPILED

ROOT = Path(__file__).parents[3]
MODULES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["galvanic"]["compiled"]["modules"]


def build(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py, which for these commands changes nothing."""
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_modules_that_are_compiled_exist() -> None:
    assert sorted(set(MODULES)) == MODULES
    assert [module for module in MODULES if not (ROOT / module).is_file()] == []


@pytest.mark.parametrize("module", MODULES)
def test_errors_of_two_types_have_two_names(module: str) -> None:
    """mypyc gives a variable one type in the whole function, and takes an error of another type for a TypeError."""
    for function in ast.walk(ast.parse((ROOT / module).read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        types: dict[str, set[str]] = {}
        for handler in ast.walk(function):
            if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type:
                types.setdefault(handler.name, set()).add(ast.unparse(handler.type))
        assert [name for name, found in types.items() if len(found) > 1] == [], function.name


@pytest.mark.parametrize("module", MODULES)
def test_all_are_compiled_or_none_is(module: str) -> None:
    """What build this is must not depend on which module is asked."""
    file = importlib.import_module(module.removesuffix(".py").replace("/", ".")).__file__
    assert file is not None
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES) if COMPILED else (".py",)
    assert file.endswith(suffixes)
    assert ROOT in Path(file).parents


def test_the_build_has_a_name() -> None:
    assert ("compiled" if COMPILED else "interpreted") == BUILD
    assert os.environ.get("GALVANIC_TEST_BUILD", BUILD) == BUILD, "make test-compiled must test the compiled build"


def test_without_a_compiler_it_says_what_to_install() -> None:
    done = build("build_ext", GALVANIC_COMPILE="1", CC="no-such-compiler")
    assert done.returncode == 1
    assert "no C compiler 'no-such-compiler'" in done.stderr
    assert "apt-get install gcc" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_variable_means_yes_or_no() -> None:
    done = build("build_ext", GALVANIC_COMPILE="maybe")
    assert done.returncode == 1
    assert "set it to 1" in done.stderr


def test_nothing_is_compiled_unless_asked() -> None:
    """Not even mypy or a compiler is looked for."""
    for environment in ({"GALVANIC_COMPILE": ""}, {"GALVANIC_COMPILE": "0"}):
        done = build("build_ext", CC="no-such-compiler", **environment)
        assert (done.returncode, done.stderr) == (0, "")
