"""docs/tuning.md is a program: its commands run on a tiny config, its Python runs, its refusals are said in those words."""

import json
import re
import shlex
import tomllib
import urllib.request
from contextlib import chdir
from pathlib import Path
from threading import Thread

import pytest
from torch import nn

import loopscale as ls
import loopscale.study
import loopscale.tune
from loopscale.cli import main
from loopscale.cli.report import command as report
from loopscale.cli.serving import make_server
from loopscale.cli.tune import command as tune
from loopscale.cli.verify import command as verify
from loopscale.study import InThisProcess
from loopscale.train import fit, load_config, make_config

TEXT = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.S)
REFUSALS = re.findall(r"^\| `((?:tune|verify|train) [^`]*)` \| (.*) \|$", TEXT, flags=re.M)
TINY = {
    "model": {"width": 32, "head_dim": 16, "layers": 1},
    "data": {"path": "synthetic:copy", "context": 16, "batch_size": 4},
    "train": {"steps": 4, "eval_batches": 1, "device": "cpu"},
}
FEWER = {"tune": ["--trials", "4", "--seeds", "1", "--workers", "1"], "verify": ["--workers", "1"]}


class Inline(InThisProcess):
    """Runs the trials in this process: starting another for each command takes longer than all that the document does."""

    def __init__(self, workers=None, gpus=0.0):
        pass


def run(line):
    """One command of the document; only how much it does is cut."""
    program, name, *arguments = shlex.split(line)
    assert program == "loopscale"
    if "--serve" in arguments:
        return served(Path(arguments[0]))
    assert main([name, *arguments, *FEWER.get(name, [])]) in ((0, 1) if name == "verify" else (0,)), line


def served(folder):
    with make_server(folder, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/").read().decode()
        server.shutdown()
    assert "Tuned at N = 1" in page and "report.html" in page


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which every block was run, in order."""
    folder = tmp_path_factory.mktemp("document")
    (folder / "small.toml").write_text(make_config(TINY).to_toml())
    large = ["model.loops=2", "model.layers=2", "model.width=64"]
    (folder / "large.toml").write_text(make_config(TINY, large).to_toml())
    files = re.findall(r"^`(\w+\.py)`, .*?```python\n(.*?)```", TEXT, flags=re.S | re.M)
    for name, source in files:
        (folder / name).write_text(source)
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loopscale.study, "LocalProcesses", Inline)  # of the commands; `tune` of the script starts its own
        patch.setattr("loopscale.tune.verification.LocalProcesses", Inline)
        for kind, block in BLOCKS:
            if kind == "bash":
                for line in block.strip().splitlines():
                    run(line)
            elif kind == "python":
                exec(compile(block, "docs/tuning.md", "exec"), {"__name__": "__main__"})
    return folder


def test_the_commands_left_what_the_document_reads(place):
    for name in ("tuned", "cut", "mine", "objective", "python"):
        assert (place / "runs" / name / "plan.json").exists()
    assert (place / "runs" / "large" / "metrics.jsonl").exists()
    assert tomllib.loads((place / "runs" / "tuned" / "tuned.toml").read_text())["model"]["width"] == 1024


def times(place):
    """When each file but the locks was written."""
    files = (path for path in place.rglob("*") if path.is_file() and path.name != "study.lock")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("command,said", REFUSALS, ids=range(len(REFUSALS)))
def test_a_refusal_is_one_sentence_in_the_documents_words(place, command, said, monkeypatch, capsys):
    if "postgresql:" in command:
        pytest.importorskip("psycopg")
    monkeypatch.chdir(place)
    before = {
        path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file() and path.name != "study.lock"
    }
    assert main(shlex.split(command)) == 2
    words = capsys.readouterr().err.removesuffix("\n")
    pattern = ".*".join(re.escape(part) for part in f"loopscale: {said}".split("…"))
    assert re.fullmatch(pattern, words), words
    assert before == {
        path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file() and path.name != "study.lock"
    }


def test_the_printed_command_and_fit_train_alike(place, tmp_path, monkeypatch, capsys):
    """The command of the document gives the loss of `fit`, bitwise, where warm-up, decay and clipping all act."""
    commands = (line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines())
    (command,) = (line for line in commands if "train --model" in line)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    tuned = (place / "runs" / "mine" / "tuned.toml").read_text()
    for name, value in (("steps", 12), ("warmup", 0.25), ("clip", 0.1)):
        tuned, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", tuned, flags=re.M)
        assert found == 1
    (tmp_path / "runs" / "mine" / "tuned.toml").write_text(tuned)
    (tmp_path / "mine.py").write_text((place / "mine.py").read_text())
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command.removeprefix("loopscale ")), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["val_loss"] == fit(load_config("runs/mine/tuned.toml")).val_loss


def test_the_same_strength_bases_and_rate_are_the_plans_in_a_loop_of_ones_own(place):
    config = load_config(place / "runs" / "tuned" / "tuned.toml")
    size, blocks = (
        config.model,
        [ls.ScaledResidual(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(config.model.layers)],
    )
    loop = ls.Loop(nn.Sequential(*blocks), 4, size.rule, strength=size.strength, base_layers=size.base_layers)
    groups = ls.param_groups(loop, lr=config.optim.lr, width=ls.Width(size.width, size.base_width))
    rows = {
        row["name"]: row["value"] for row in json.loads((place / "runs" / "tuned" / "plan.json").read_text())["rows"]
    }
    assert loop.residual_scale(size.loops) == pytest.approx(rows["residual_scale"])
    for group in groups:
        assert group["lr"] == pytest.approx(config.optim.lr * rows[f"{group['name']}.lr"])


def test_there_are_refusals_and_every_option_is_told():
    assert len(REFUSALS) >= 15
    for command in (tune, verify, report):
        for parameter in command.params:
            for option in (word for word in parameter.opts if word.startswith("--")):
                assert f"`{option}" in TEXT or f"{option} " in TEXT or f"{option}`" in TEXT, option


def test_the_config_of_the_document_is_one():
    (config,) = (block for kind, block in BLOCKS if kind == "toml")
    assert make_config(tomllib.loads(config)).train.steps == 300
