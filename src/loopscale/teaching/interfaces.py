"""Commands and public functions, read from their sources: what a name does, without importing torch."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@cache
def pages() -> dict[str, list[str]]:
    """Read which page of the documentation, by its title, holds which commands and functions."""
    return tomllib.loads(_text("teaching", "pages.toml"))


def _page_of(name: str) -> str | None:
    return next((page for page, names in pages().items() if name in names), None)


@dataclass(frozen=True)
class Interface:
    """A command or a function: its first line, the rest of what it says, how it is called, its page."""

    name: str
    first: str
    rest: str
    call: str
    page: str | None


@cache
def commands() -> tuple[Interface, ...]:
    """Read every command of `loopscale.cli` in the order of its table."""
    places = re.findall(r'^    "(\w+)": "loopscale\.cli\.(\w+):(\w+)"', _text("cli", "__init__.py"), flags=re.M)
    found = []
    for name, file, function in places:
        node = _definition(_text("cli", f"{file}.py"), function)
        if node is not None:
            first, rest = _parts(node)
            found.append(Interface(name, first, rest, f"loopscale {name} --help", _page_of(name)))
    return tuple(found)


@cache
def functions() -> tuple[Interface, ...]:
    """Read every public function and class of `loopscale`, from the package that the stub names."""
    rows = re.findall(r"^from loopscale\.(\w+) import (\w+) as", _text("__init__.pyi"), flags=re.M)
    places = {name: package for package, name in rows if name not in ("RULES", "UserError")}
    found = []
    for name, package in sorted(places.items()):
        for path in sorted(files("loopscale").joinpath(package).iterdir(), key=str):
            node = _definition(path.read_text(encoding="utf-8"), name) if path.name.endswith(".py") else None
            if node is not None:
                first, rest = _parts(node)
                found.append(Interface(name, first, rest, _call(node), _page_of(name)))
                break
    return tuple(found)


def _text(*place: str) -> str:
    return files("loopscale").joinpath(*place).read_text(encoding="utf-8")


def _definition(source: str, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    if f"def {name}(" not in source and f"class {name}" not in source:
        return None
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name and ast.get_docstring(node):
            return node
    return None


def _parts(node: ast.FunctionDef | ast.ClassDef) -> tuple[str, str]:
    """Give the docstring's first paragraph and the rest, on one line each; examples are left out."""
    text = (ast.get_docstring(node) or "").partition(">>>")[0]
    first, *rest = (" ".join(part.split()) for part in text.split("\n\n") if part.strip())
    return first, " ".join(rest)


def _call(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Write the call with its arguments; of a class, those of its constructor or its fields."""
    if isinstance(node, ast.FunctionDef):
        return f"ls.{node.name}({_arguments(node.args)})"
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return f"ls.{node.name}({_arguments(part.args)})"
    fields = [
        part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    ]
    return f"ls.{node.name}({', '.join(field for field in fields if not field.startswith('_'))})"


def _arguments(arguments: ast.arguments) -> str:
    """Return names and defaults, without types and self."""
    bare = ast.parse("def f(): pass").body[0]
    assert isinstance(bare, ast.FunctionDef)
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    for more in (arguments.vararg, arguments.kwarg):
        if more is not None:
            more.annotation = None
    bare.args = arguments
    return re.sub(r"^self(, )?", "", ast.unparse(bare).partition("(")[2].rpartition("):")[0])
