"""From "package.module:name" or "file.py:name" to the function it names, and the fingerprint of its source."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from loopscale.errors import UserError, describe, nearest

FORMS = "give package.module:function or file.py:function"


def load_place(place: str) -> tuple[Callable[..., Any], ModuleType]:
    """Return the function at `place` and its module; raises `UserError` when there is none, or importing it fails."""
    where, colon, name = place.rpartition(":")
    if not (colon and where and name):
        raise UserError(f"{place!r} names no function: {FORMS}")
    found, module = load_name(place)
    if not callable(found):
        raise UserError(f"{place} is a {type(found).__name__}, not a function: {FORMS}")
    return found, module


def load_name(place: str, forms: str = FORMS) -> tuple[Any, ModuleType]:
    """Return whatever `place` names, and the module it is in; `forms` says in an error what may be given.

    Raises `UserError` as `load_place` does; a name that the module does not have gets the nearest function or class in it.
    """
    where, _, name = place.rpartition(":")
    module = import_source(where, forms)
    if hasattr(module, name):
        return getattr(module, name), module
    public = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
    if not public:
        raise UserError(f"{where} has no {name!r}, nor any other function: let it define one")
    known = textwrap.shorten(nearest(name, public), 200, placeholder=" ...")
    raise UserError(f"{where} has no {name!r}: {known}")


def fingerprint(place: str) -> str:
    """Hash the code of the file that `place` names and of every file beside it that it imports, directly or not.

    Trials are keyed by it, so editing the model makes new trials. Comments, blank lines and docstrings do not enter, nor do
    installed packages.
    """
    where = place.rpartition(":")[0]
    origin = import_source(where).__file__
    if origin is None:
        raise UserError(f"{where} has no source file: {FORMS}")
    path = Path(origin)
    top = path.parents[where.count(".")] if not where.endswith(".py") else path.parent
    digest = hashlib.sha256()
    installed = {Path(folder) for folder in sysconfig.get_paths().values()}
    for source in _local_sources(path, {path.parent, top} - installed):
        digest.update(_code(source).encode())
    return digest.hexdigest()[:16]


def _code(path: Path) -> str:
    """Give the code of a file as Python itself would write it, without docstrings."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
    return ast.unparse(tree)


def import_source(where: str, forms: str = FORMS) -> ModuleType:
    """Return the module of a dotted name or .py file; raises `UserError`, naming `forms`, when there is none."""
    try:
        if where.endswith(".py"):
            return _from_file(Path(where), forms)
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        return importlib.import_module(where)
    except UserError:
        raise
    except ModuleNotFoundError as cause:
        raise UserError(f"cannot import {where!r}: no module named {cause.name!r} is installed or here") from None
    except (Exception, SystemExit) as cause:
        raise UserError(f"importing {where} failed: {describe(cause)}") from None


def _from_file(path: Path, forms: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no file {path}: {forms}")
    whole = path.resolve()
    name = f"_loopscale_{path.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(whole.parent) not in sys.path:
        sys.path.insert(0, str(whole.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _local_sources(path: Path, roots: set[Path]) -> list[Path]:
    found, left = {path}, [path]
    while left:
        for name in _imports(left.pop()):
            for root in roots:
                stem = root.joinpath(*name.split("."))
                for source in (stem.with_suffix(".py"), stem / "__init__.py"):
                    if source.is_file() and source not in found:
                        found.add(source)
                        left.append(source)
    return sorted(found)


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {".".join(filter(None, (node.module, alias.name))) for alias in node.names}
            names |= {node.module} if node.module else set()
    return names
