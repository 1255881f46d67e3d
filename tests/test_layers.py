"""The table of layers in docs/architecture.md is true of every import, inside functions too."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "loopscale"
LAYERS = sorted(path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__")
SHARED = {"errors", "files"}


def documented() -> dict[str, set[str]]:
    """Layer -> what it may import, from the table in the document."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([^|]*) \|$", text, flags=re.M)
    allowed = {}
    for layer, cell in rows:
        if layer in LAYERS:
            allowed[layer] = set(LAYERS) if cell.startswith("all") else {name for name in LAYERS if name in cell}
    return allowed


def imported(path: Path) -> set[str]:
    """The loopscale layers a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("loopscale.")}


def test_every_layer_is_documented():
    assert set(documented()) == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_imports_only_what_the_table_allows(layer):
    allowed = documented()[layer] | {layer} | SHARED
    for path in (SOURCE / layer).glob("*.py"):
        found = imported(path) & set(LAYERS)
        assert found <= allowed, f"{path.name} imports {sorted(found - allowed)}: allowed {sorted(allowed)}"


SLOW_TO_IMPORT = {"torch", "numpy", "pydantic", "rich", "tempfile", "asyncio", "loopscale.teaching", "loopscale.train"}


@pytest.mark.parametrize(
    "code",
    [
        "import loopscale; loopscale.residual_scale(loopscale.Depth(loops=8, layers=4))",
        "import loopscale; assert {*loopscale.__all__, '__version__'} <= {*dir(loopscale)}",
        "from loopscale.cli import main; main(['scale', '--loops', '8', '--layers', '4', '--json'])",
        "from loopscale.cli import main; main(['--help']); main(['train'])",
    ],
)
def test_the_maths_and_the_help_import_nothing_slow(code):
    assert not SLOW_TO_IMPORT & imported_by(code)


def test_a_training_imports_nothing_for_many_ranks():
    """They cost a third of a small training's start."""
    slow = {
        "sympy",
        "torch._dynamo",
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
    }
    assert not slow & imported_by("import loopscale.transfer, loopscale.report, loopscale.train")


def imported_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())
