"""docs/frameworks.md: every script runs as it is printed, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "frameworks.md").read_text()
SCRIPTS = dict(re.findall(r"<!-- script: (\w+) -->\n```python\n(.*?)```", TEXT, flags=re.S))
NEEDS = {
    "trainer": ["transformers", "accelerate"],
    "plain": [],
    "accelerate": ["accelerate"],
    "lightning": ["pytorch_lightning"],
    "torchtitan": ["torchtitan.models.llama3"],
    "jax": ["jax", "optax"],
}


def run(name: str, folder: Path, *launcher: str) -> str:
    for module in NEEDS[name]:
        pytest.importorskip(module, exc_type=ImportError)
    script = folder / f"{name}_script.py"
    script.write_text(SCRIPTS[name])
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *launcher, script],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_script_is_tested():
    assert set(SCRIPTS) == set(NEEDS)


def test_the_plain_loop(capsys):
    exec(compile(SCRIPTS["plain"], "plain", "exec"), {"__name__": "plain"})
    loss, longer = map(float, re.findall(r"\d\.\d+", capsys.readouterr().out))
    assert loss < 1.5 and longer < loss + 0.3


@pytest.mark.slow
def test_the_trainer_saves_loads_restores_and_generates(tmp_path):
    said = run("trainer", tmp_path)
    assert said.strip().endswith("[[3, 4, 5, 6, 7, 8, 9, 10]]"), said


@pytest.mark.slow
def test_accelerate_on_two_processes(tmp_path):
    pytest.importorskip("accelerate")
    said = run("accelerate", tmp_path, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    processes, loss = re.search(r"(\d) processes, loss (\d\.\d+)", said).groups()
    assert processes == "2" and float(loss) < 1.9


@pytest.mark.slow
def test_lightning(tmp_path):
    assert float(re.search(r"loss (\d\.\d+)", run("lightning", tmp_path))[1]) < 1.9


@pytest.mark.slow
def test_torchtitan(tmp_path):
    assert "looped passes: the slopes over N are flat" in run("torchtitan", tmp_path)


def test_another_torchtitan_gets_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchtitan.models.llama3", None)  # as where a name or the package is missing
    with pytest.raises(SystemExit) as ended:
        exec(compile(SCRIPTS["torchtitan"], "torchtitan", "exec"), {"__name__": "torchtitan"})
    assert ended.value.code == 2
    assert capsys.readouterr().err == "this script needs torchtitan 0.2.2: pip install 'torchtitan==0.2.2' triton\n"


@pytest.mark.slow
def test_jax(tmp_path):
    said = run("jax", tmp_path)
    assert "the network passes: the slopes over N are flat" in said and "'embedding': 'embedding'" in said
