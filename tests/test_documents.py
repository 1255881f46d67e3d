"""The documents are true: numbers come from records, code blocks run, the tour names files that exist."""

import ast
import doctest
import importlib
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)


def test_the_readme_shows_the_records(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["render.py", "--check"])
    monkeypatch.syspath_prepend(ROOT / "records")
    runpy.run_path(str(ROOT / "records" / "render.py"), run_name="__main__")


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_python_block_of_the_readme_runs(block):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.slow
def test_the_commands_of_the_readme_take_its_model_all_the_way(tmp_path):
    pytest.importorskip("optuna")
    text = (ROOT / "README.md").read_text()
    (commands,) = [block for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S) if "my_model.py" in block]
    (tmp_path / "my_model.py").write_text(next(block for block in BLOCKS if "def make_model" in block))
    short = {
        "transfer": "--loops 1,2 --seeds 1 --set train.steps=4",
        "tune": "--trials 4 --seeds 1 --set model.width=32 --set model.layers=2 --set train.steps=10",
    }
    assert "scale" in commands and len(commands.splitlines()) == 4
    for line in commands.splitlines():
        words = line.partition("#")[0].split()[1:]
        done = subprocess.run(
            [sys.executable, "-m", "loopscale", *words, *short.get(words[0], "").split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
    assert "loops = 16" in (tmp_path / "run" / "config.toml").read_text()


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 3


def test_the_tree_in_the_architecture_is_the_tree():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"^  (\w+/|\w+\.py) ", text, flags=re.M))
    inside = [path for path in (ROOT / "src" / "loopscale").iterdir() if not path.name.startswith("_")]
    real = {f"{path.name}/" for path in inside if path.is_dir()} | {
        path.name for path in inside if path.suffix == ".py"
    }
    assert named == real


def test_scripts_call_public_functions_by_the_names_of_their_arguments():
    import loopscale as ls

    wrong, seen = [], 0
    for folder in ("benchmarks", "papers", "examples", "records"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "ls"):
                    continue
                called = getattr(ls, node.func.attr)
                if isinstance(called, type) and issubclass(called, Exception):
                    continue  # an exception has no signature to read
                takes = inspect.signature(called).parameters
                given = {word.arg for word in node.keywords if word.arg}
                seen += len(given)
                if not any(p.kind is p.VAR_KEYWORD for p in takes.values()) and not given <= set(takes):
                    wrong.append(f"{path.name}:{node.lineno} {node.func.attr} {sorted(given - set(takes))}")
    assert not wrong and seen > 20


def test_scripts_import_names_that_are_there():
    wrong, seen = [], 0
    for folder in ("benchmarks", "papers", "examples", "records", "docs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "loopscale"):
                    continue
                module = importlib.import_module(node.module)
                seen += len(node.names)
                for name in node.names:
                    if not hasattr(module, name.name) and not find_spec(f"{node.module}.{name.name}"):
                        wrong.append(f"{path.name}:{node.lineno} {node.module}.{name.name}")
    assert not wrong and seen > 100


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{name}.md" for name in ("architecture", "parameterization", "model", "performance")),
    ],
)
def test_files_named_in_documents_exist(document):
    text = (ROOT / document).read_text()
    for path in re.findall(r"`((?:src|docs|tests|records|benchmarks|examples)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w/.-]+)\)", text):
        assert (ROOT / document).parent.joinpath(path).exists(), path


def test_records_say_where_they_come_from():
    for path in (ROOT / "records").glob("*.json"):
        provenance = json.loads(path.read_text())["provenance"]
        assert {"torch", "python", "commit", "hardware", "date"} <= set(provenance), path


def test_version_is_one():
    import loopscale

    assert f'version = "{loopscale.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {loopscale.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {loopscale.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_doctests_of_the_public_modules():
    source, tried = ROOT / "src", 0
    for path in sorted((source / "loopscale").glob("[!_]*/*.py")):
        if ">>>" in path.read_text():
            found = doctest.testmod(importlib.import_module(".".join(path.relative_to(source).with_suffix("").parts)))
            assert not found.failed, path
            tried += found.attempted
    assert tried > 100
