"""Tuning a model of the user's own: what is printed for it, and written into tuned.toml, runs exactly as it stands."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import loopscale
from loopscale.factory import OFFERED
from loopscale.train import fit, load_config
from loopscale.train.training import make_task, task_optimizer

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(loopscale.__file__).parents[1])}
EXAMPLES = Path(__file__).parents[1] / "transfer" / "user_examples.py"
# A width that no head of the house model divides, and a validation of four batches.
SMALL = """
[model]
width = 17
layers = 1

[data]
batch_size = 32

[optim]
lr = 0.01

[train]
steps = 12
eval_batches = 4
device = "cpu"
"""


def ran(place, command):
    done = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder in which a model of the user's own was tuned by the command, and what the command said."""
    place = tmp_path_factory.mktemp("own")
    shutil.copy(EXAMPLES, place / "mine.py")
    (place / "small.toml").write_text(SMALL)
    size = ["--target", "loops=4,layers=2,width=34", "--trials", "4", "--seeds", "1", "--workers", "1", "--out", "t"]
    command = [sys.executable, "-m", "loopscale", "tune", "small.toml", "--model", "mine.py:make_model", *size]
    return place, ran(place, command)


def after(text, words):
    """The rest of the one line that holds these words."""
    (line,) = (line for line in text.splitlines() if words in line)
    return line.partition(words)[2]


@pytest.mark.slow
def test_the_printed_command_and_that_in_the_file_are_one_and_train_the_target(told, monkeypatch):
    place, said = told
    (command,) = (line for line in said.splitlines() if line.startswith("train: "))
    assert after((place / "t" / "tuned.toml").read_text(), "# Train it: ") == command.removeprefix("train: ")
    words = shlex.split(command)[2:]
    outcome = json.loads(ran(place, [sys.executable, "-m", "loopscale", *words, "--out", "large", "--json"]))
    monkeypatch.chdir(place)
    config = load_config("t/tuned.toml")
    assert (config.model.loops, config.model.layers, config.model.width) == (4, 2, 34)
    assert math.isfinite(outcome["val_loss"]) and outcome["val_loss"] == fit(config).val_loss


def test_the_file_holds_nothing_of_the_house_model(told):
    place, _ = told
    written = tomllib.loads((place / "t" / "tuned.toml").read_text())
    assert set(written["model"]) <= {"factory", *OFFERED.split(", ")} and written["model"]["width"] == 34


def test_the_target_is_built_with_what_the_rule_says(told, monkeypatch):
    place, _ = told
    monkeypatch.chdir(place)
    config = load_config("t/tuned.toml")
    task = make_task(config)
    rates = {group["name"]: group["lr"] for group in task_optimizer(task).param_groups}
    assert task.model.scale == pytest.approx(config.model.strength / (4 * 2**0.5))
    assert rates["hidden"] == pytest.approx(config.optim.lr * 2**-0.5 / 2)
    assert rates["readout"] == pytest.approx(
        config.optim.lr * config.optim.outer_lr / 2
    )  # its logits are not multiplied


NAIVE = """
from pathlib import Path
from loopscale.train import load_config
from loopscale.study import LocalProcesses, UserCode
from loopscale.tune import Size, TuneSettings, tune
base = load_config("small.toml", user=True)
settings = TuneSettings(base, Size.of(base), Size.of(base), trials=3, user_code=UserCode.at("mine.py:make_model"))
tune(settings, Path("naive"), executor=LocalProcesses(1))
"""


@pytest.mark.slow
def test_a_script_without_its_guard_is_told_of_it(told):
    """The processes of the trials import the script, which would tune again in each of them."""
    place, _ = told
    (place / "naive.py").write_text(NAIVE)
    command = [sys.executable, "naive.py"]
    done = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and 'starts them outside `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert done.stderr.count("UserError: a script starts trials") == 3, "each process said so at once"
