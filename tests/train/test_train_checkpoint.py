"""Checkpoints: no pickle is ever read, what does not fit its config is refused, older formats are read or named."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import loopscale
from loopscale.cli import main
from loopscale.errors import UserError
from loopscale.files import file_sha256
from loopscale.train import TrainConfig, generate, resume_run, sharded, train_run
from loopscale.train import checkpoint as checkpoints
from loopscale.train.load_model import load_model

DOCS = Path(__file__).parents[2] / "docs/training.md"


@pytest.fixture(scope="module")
def finished(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_run(tiny, folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


class Shell:
    """Pickled, it runs a command when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def seal(checkpoint: Path) -> None:
    """Make checksums that fit, as whoever crafts a folder would."""
    lines = [f"{file_sha256(path)}  {path.name}\n" for path in checkpoint.iterdir() if path.name != checkpoints.SUMS]
    (checkpoint / checkpoints.SUMS).write_text("".join(lines))


@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["train", "--resume"], ["diagnose"]])
def test_a_crafted_run_folder_runs_nothing(
    run: Path, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints/step-000012"
    for file in newest.glob("*.safetensors"):
        file.unlink()
    (newest / ".metadata").write_bytes(pickle.dumps(Shell(tmp_path / "ran")))
    seal(newest)
    assert main([*command, str(run)]) == 2
    said = capsys.readouterr().err
    assert "is in a pickled format, which could run a program and is not read" in said and said.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_a_link_out_of_the_folder_is_not_followed(run: Path, tmp_path: Path) -> None:
    newest = run / "checkpoints/step-000012"
    (newest / "model.safetensors").rename(tmp_path / "elsewhere")
    (newest / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds links to other places and is not read"):
        load_model(run)


# What reads a pickle, and what keeps each of these calls from it.
READERS = re.compile(
    r"\b(pickle\.loads?|cPickle|cloudpickle|dill|joblib|shelve|marshal|read_pickle|FileSystemReader|dcp_to_torch_save)\b"
)


def test_no_source_reads_a_pickle() -> None:
    for path in Path(loopscale.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not (READERS.search(text) or "load" in text or "yaml." in text):
            continue
        tree = ast.parse(text)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            said = ast.unparse(call.func)
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if said in ("torch.load", "load_state_dict_from_url"):
                assert given.get("weights_only") == "True", f"{path.name}: {ast.unparse(call)}"
            if said in ("np.load", "numpy.load"):
                assert given.get("allow_pickle") == "False", f"{path.name}: {ast.unparse(call)}"
            if said == "load":  # torch.distributed.checkpoint
                assert "HuggingFaceStorageReader" in given.get("storage_reader", ""), (
                    f"{path.name}: {ast.unparse(call)}"
                )
            if said.startswith("yaml."):
                assert said == "yaml.safe_load" or "BaseLoader" in given.get("Loader", ""), f"{path.name}: {said}"
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        names |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not [name for name in names if READERS.search(name)], path


def test_what_reads_a_pickle_is_found() -> None:
    """The walk above can fail."""
    assert READERS.search("pickle.load") and READERS.search("FileSystemReader")
    assert not READERS.search("HuggingFaceStorageReader") and not READERS.search("pickle.UnpicklingError")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('rule = "looped"', 'rule = "sqrt"', "model.rule is looped there and sqrt in config.toml"),
        ("strength = 1.0", "strength = 2.0", "model.strength is 1.0 there and 2.0 in config.toml"),
        ("loops = 2", "loops = 3", "model.loops is 2 there and 3 in config.toml"),
        ("width = 16", "width = 32", "model.width is 16 there and 32 in config.toml"),
    ],
)
@pytest.mark.parametrize("use", [lambda run: generate(run, "a"), load_model], ids=["generate", "load_model"])
def test_an_edited_config_is_of_another_model(run: Path, use: Any, old: str, new: str, said: str) -> None:
    file = run / "config.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=re.escape(said)):
        use(run)


def test_shapes_that_do_not_fit_are_named(run: Path) -> None:
    newest = run / "checkpoints/step-000012"
    weights = load_file(newest / "model.safetensors")
    save_file({**weights, "final_norm.weight": torch.zeros(3)}, newest / "model.safetensors")
    seal(newest)
    with pytest.raises(UserError, match=r"\(final_norm\.weight is \(3,\) there and .* by the config\): restore"):
        load_model(run)


def test_a_checkpoint_of_version_0_3_goes_on(run: Path, finished: Path) -> None:
    """It counted the optimizer's tensors by position."""
    newest = run / "checkpoints/step-000008"
    shutil.rmtree(run / "checkpoints/step-000012")
    names = list(load_file(newest / "model.safetensors"))
    model = load_model(finished).model
    from loopscale.optim import build_optimizer

    order = [p for group in build_optimizer(model, lr=0.1).param_groups for p in group["params"]]
    position = {name: next(i for i, q in enumerate(order) if q is p) for name, p in model.named_parameters()}
    assert names
    moved = {}
    for key, value in load_file(newest / "optimizer.safetensors").items():
        name, _, field = key.removeprefix("optimizer/").rpartition("/")
        moved[f"state.state.{position[name]}.{field}"] = value
    save_file(moved, newest / "optimizer.safetensors")
    seal(newest)
    assert resume_run(run).status == "finished"
    name = "checkpoints/step-000012/model.safetensors"
    assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_tied_and_transposed_tensors_are_written(tmp_path: Path) -> None:
    shared, turned = torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3).T
    given = {"a": shared, "b": shared, "c": turned, "step": torch.tensor(2.0), "none": torch.zeros(0, 4)}
    sharded.write_tensors(tmp_path, "model", given)
    assert {name: tuple(value.shape) for name, value in sharded.stored(tmp_path).items()} == {
        name: tuple(value.shape) for name, value in given.items()
    }
    back = {name: torch.zeros_like(value) for name, value in given.items()}
    sharded.read_tensors(tmp_path, back)
    assert all(torch.equal(back[name], value) for name, value in given.items())


def test_what_is_no_tensor_is_refused(run: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> object:
            return {"set": {1, 2}}

    with pytest.raises(UserError, match=r"state_dict holds '_extra_state', a dict: let it hold tensors alone"):
        checkpoints._check_tensors(Odd(2, 2).state_dict())


def test_the_documented_conversion_of_pickled_checkpoints(run: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    newest = run / "checkpoints/step-000012"
    weights = load_file(newest / "model.safetensors")
    for file in newest.glob("*.safetensors"):
        file.unlink()
    save(
        {f"model/{name}": value for name, value in weights.items()},
        storage_writer=FileSystemWriter(newest),
        no_dist=True,
    )
    section = DOCS.read_text(encoding="utf-8").partition("Checkpoints of older versions")[2]
    program = re.search(r"```py\n(.*?)```", section, re.S)
    assert program is not None
    text = program[1].replace("runs/old/checkpoints/step-000100", str(newest))
    subprocess.run([sys.executable, "-c", text], check=True, cwd=tmp_path, capture_output=True)
    assert all(torch.equal(weights[name], value) for name, value in load_file(tmp_path / "weights.safetensors").items())


def test_the_place_aside_does_not_rest_on_the_process(run: Path, tiny: TrainConfig) -> None:
    """In a container every process is number 1: what a killed one left must not block the next."""
    for name in (f".step-000012.{os.getpid()}", ".step-000012.1"):
        (run / "checkpoints" / name).mkdir()
    shutil.rmtree(run / "checkpoints/step-000012")
    assert resume_run(run).status == "finished"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-000008", "step-000012"}


@pytest.mark.parametrize(("field", "value"), [("step", None), ("step", "12"), ("config", []), ("config", None)])
def test_a_damaged_state_names_the_field(run: Path, field: str, value: Any) -> None:
    newest = run / "checkpoints/step-000012"
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps({**state, field: value}))
    seal(newest)
    with pytest.raises(UserError, match=rf"state\.json is damaged \(its '{field}'\)"):
        load_model(run)
