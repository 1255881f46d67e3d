"""The house keeps its shape: no import circle, the central line in sight, a tour that is true."""

import ast
import importlib
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "loopscale"
FILES = sorted(SOURCE.rglob("*.py"))
PATH = ("cli/train.py", "train/loop.py", "nn/transformer.py")  # from `loopscale train` to the scaled addition


def module(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path) for path in FILES}
HOMES = {
    f"{module(stub.with_suffix('.py'))}.{alias.name}": node.module
    for stub in SOURCE.rglob("__init__.pyi")
    for node in ast.parse(stub.read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}  # of the public names of packages that load them when they are first touched


def home(name: str) -> str:
    """The module that a name of this package is in, through packages whose own names load lazily."""
    while name in HOMES:
        name = f"{HOMES[name]}.{name.rpartition('.')[2]}"
    return name if name in MODULES else name.rpartition(".")[0]


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports when it is imported itself (not for types, not in functions)."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loopscale"):
            found |= {home(f"{node.module}.{alias.name}") for alias in node.names}
    return found - {"loopscale"}


def test_public_names_are_found_in_the_modules_that_their_stubs_name():
    package = importlib.import_module
    lost = [name for name in HOMES if not hasattr(package(name.rpartition(".")[0]), name.rpartition(".")[2])]
    assert HOMES and not lost


def test_a_package_lists_its_public_names_before_they_are_loaded():
    """For completion, and for the reference of the documentation."""
    said = """if True:
        import importlib, sys
        for package, name in (full.rsplit(".", 1) for full in sys.argv[1:]):
            assert name in dir(importlib.import_module(package)), (package, name)
    """
    subprocess.run([sys.executable, "-c", said, *HOMES], check=True)


def test_no_file_imports_itself_in_a_circle():
    TopologicalSorter({module(path): imports(path) for path in FILES}).prepare()  # raises CycleError


def test_from_the_command_to_the_line_it_is_three_files():
    assert sum(len((SOURCE / name).read_text().splitlines()) for name in PATH) <= 700


def test_the_central_line_is_in_sight():
    text = (SOURCE / "nn" / "transformer.py").read_text()
    block = text[text.index("class PreNormBlock") : text.index("class SandwichBlock")]
    assert "# x = x + scale * branch(norm(x))" in block
    core = text[text.index("class LoopedCore") :]
    assert re.search(r"for visit in range\(loops\):\n.*\n\s+for layer, block in enumerate\(self\):", core)


TOUR = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("name, span", re.findall(r"`([\w/]+\.py)` holds `([^`]+)`", TOUR))
def test_what_the_tour_quotes_stands_in_the_file_that_it_names(name, span):
    assert span in (SOURCE / name).read_text()


def test_the_tour_quotes_code():
    assert len(re.findall(r"`([\w/]+\.py)` holds `([^`]+)`", TOUR)) >= 5


FOREIGN = {"vmap", "forward"}  # signatures that torch and transformers prescribe
MOST, EXCUSED = 6, 2


def crowded() -> list[str]:
    """Library functions with more than six parameters; a command's are the options of its command line."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                command = any(
                    "click." in ast.unparse(one) or ".command" in ast.unparse(one) for one in node.decorator_list
                )
                if count > MOST and not command and node.name not in FOREIGN:
                    found.append(f"{path.relative_to(SOURCE)}: {node.name} ({count})")
    return found


def test_few_functions_have_more_than_six_parameters():
    assert len(crowded()) <= EXCUSED, f"bundle parameters in a config object: {crowded()}"


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_a_test_gives_up_on_no_clock_of_less_than_minutes(path):
    """A loaded machine is slow, not wrong: ten minutes, in seconds or a browser's milliseconds, or no limit."""
    text = path.read_text()
    limits = [int(number.replace("_", "")) for number in re.findall(r"\btimeout=([\d_]+)", text)]
    assert all(limit in (600, 600_000) for limit in limits), limits
    assert (
        not re.search(r"monotonic\(\) \+ \d|startTime|perf_counter\(\) - \w+ < ", text) or path.name == "test_shape.py"
    )
