"""docs/training.md and the examples for schedulers: every block runs, every command in them is one that exists."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from loopscale.cli import group, main
from loopscale.train import load_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "training.md").read_text()
EXAMPLES = ROOT / "examples"


def commands(text: str) -> list[list[str]]:
    """The arguments after `loopscale` of each line that starts it."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    found = [re.search(r"(?:^|-m )loopscale (.*)$", line.strip()) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


def check(arguments: list[str]) -> None:
    """click accepts the arguments, and the config that they make is a config."""
    command: Any = group
    context = click.Context(group)
    while isinstance(command, click.Group):
        command, arguments = command.get_command(context, arguments[0]), arguments[1:]
        assert command is not None, arguments
    context = command.make_context(command.name, list(arguments))
    config = context.params.get("config")
    if config is not None:
        load_config(ROOT / config, context.params["sets"])


BASH = [block for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)]


@pytest.mark.parametrize("block", BASH, ids=range(len(BASH)))
def test_the_commands_of_the_document_are_commands(block: str) -> None:
    assert commands(block)
    for arguments in commands(block):
        check(arguments)


def test_the_python_of_the_document_runs() -> None:
    for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.S):
        exec(compile(block, "training.md", "exec"), {"__name__": "document"})


def test_files_that_are_named_exist() -> None:
    for path in re.findall(r"`((?:src|docs|tests|records|benchmarks|examples)/[\w/.-]+)`", TEXT):
        assert (ROOT / path).exists(), path


def test_the_slurm_script_is_bash_and_its_command_exists() -> None:
    script = EXAMPLES / "train.slurm"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    (arguments,) = commands(script.read_text())
    check(arguments)


@pytest.mark.parametrize("name", ["train.k8s.yaml", "train.skypilot.yaml"])
def test_the_yaml_is_yaml_and_its_command_exists(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    value = yaml.safe_load((EXAMPLES / name).read_text())
    if name == "train.k8s.yaml":
        (container,) = value["spec"]["template"]["spec"]["containers"]
        command = container["command"]
        check(command[command.index("loopscale") + 1 :])
    else:
        assert subprocess.run(["bash", "-n"], input=value["run"], text=True).returncode == 0
        (arguments,) = commands(value["run"])
        check(arguments)


@pytest.mark.slow
def test_the_commands_of_the_document_run(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    text = (EXAMPLES / "tiny.toml").read_text().replace("steps = 400", "steps = 4")
    (tmp_path / "examples/tiny.toml").write_text(text)
    shutil.copy(EXAMPLES / "180m.toml", tmp_path / "examples")
    (model,) = re.findall(r"`gpt\.py`:\n\n```python\n(.*?)```", TEXT, flags=re.S)
    (tmp_path / "gpt.py").write_text(model)
    for block in BASH:
        for line in block.splitlines():
            words = shlex.split(line)
            start = (
                [sys.executable, "-m", "torch.distributed.run"]
                if words[0] == "torchrun"
                else [sys.executable, "-m", "loopscale"]
            )
            done = subprocess.run([*start, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_the_cluster_section_is_a_config_that_fits_and_commands_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = TEXT.partition("## A cluster, from")[2].partition("\n### ")[0]
    (tmp_path / "large.toml").write_text(re.findall(r"```toml\n(.*?)```", section, flags=re.S)[0])
    assert main(["plan", str(tmp_path / "large.toml"), "--gpus", "16", "--memory", "80GB"]) == 0
    assert "total 1.31 B" in capsys.readouterr().out
    text = re.sub(r" +#.*", "", re.sub(r"```toml\n.*?```", "", section, flags=re.S))
    found = commands(text)
    assert [arguments[0] for arguments in found] == ["plan", "tune", "verify", "train"]
    for name, *arguments in found:
        group.get_command(click.Context(group), name).make_context(name, arguments)  # type: ignore[union-attr]
