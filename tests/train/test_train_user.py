"""A run of a user model is a run like any other: folder, monitor, exact continuation, ranks, orderly ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from changed import changed
from ranked import run as ranked_run
from ranks import begin, finish, on_ranks
from safetensors.torch import load_file

from loopscale.cli import main
from loopscale.cli.train_options import asked_config
from loopscale.errors import UserError
from loopscale.optim import param_groups
from loopscale.train import TrainConfig, fit, open_run, resume_run, train_run, user_model

CODE = Path(__file__).parent / "user_code.py"
POINTS = Path(__file__).parents[1] / "transfer" / "user_examples.py"


@pytest.fixture(scope="session")
def mine(tiny: TrainConfig) -> TrainConfig:
    return changed(tiny, data={"path": "synthetic:copy"}, model={"loops": 3}).using(f"{CODE}:make_model")


@pytest.fixture(scope="module")
def finished(mine: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "mine"
    assert train_run(mine, run).status == "finished"
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def lines(run: Path) -> list[dict[str, Any]]:
    drop = ("tokens_per_second", "rows_per_second", "seal")
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in drop} for line in found]


def weights(run: Path, step: int) -> bytes:
    return (run / f"checkpoints/step-{step:06d}/model.safetensors").read_bytes()


def test_the_folder_is_that_of_any_run(finished: Path, mine: TrainConfig) -> None:
    assert open_run(finished).config.model.factory == mine.model.factory
    found = lines(finished)
    assert [line["step"] for line in found] == list(range(1, 13))
    assert {line["step"]: len(line["stream_rms"]) for line in found if "stream_rms" in line} == {1: 4, 5: 4, 10: 4}
    assert found[-1]["val_loss"] == fit(mine).val_loss, "a run and a trial of the same config differ"
    origin = json.loads((finished / "provenance.json").read_text())
    assert origin["model"]["roles"]["loop.stack.0.branch.weight"] == "hidden" and "sha256" in origin["data"]
    model = user_model(str(mine.model.factory), mine).model
    model.load_state_dict(load_file(finished / "checkpoints/step-000012/model.safetensors"))


@pytest.mark.parametrize("place", [f"{CODE}:dropping", f"{POINTS}:make_model"], ids=["dropout", "make_batch"])
def test_a_killed_process_is_continued_bitwise(mine: TrainConfig, tmp_path: Path, place: str) -> None:
    config = mine.using(place)
    torch.manual_seed(5)  # whatever the caller drew is nothing to the run
    train_run(config, tmp_path / "whole")
    assert finish(begin(1, ranked_run, config.to_dict(), str(tmp_path / "cut"), 7, 0)) == [("lost", None)]
    assert len(lines(tmp_path / "cut")) < 12 and resume_run(tmp_path / "cut").status == "finished"
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert weights(tmp_path / "cut", 12) == weights(tmp_path / "whole", 12)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["make_model", "attached"])
def test_ranks_share_the_training_and_one_continues_it(
    mine: TrainConfig, tmp_path: Path, name: str, strategy: str
) -> None:
    config = mine.using(f"{CODE}:{name}").replaced("train", precision="fp32", strategy=strategy)
    train_run(config, tmp_path / "alone")
    values = config.to_dict()
    answers = finish(begin(2, ranked_run, values, str(tmp_path / "ranks"), 8, 0, 15))
    assert [answer["status"] for _, answer in answers] == ["stopped", "stopped"]
    assert resume_run(tmp_path / "ranks").status == "finished"
    for key in ("loss", "val_loss"):
        ours, theirs = ([line[key] for line in lines(tmp_path / r) if key in line] for r in ("ranks", "alone"))
        assert ours == pytest.approx(theirs, abs=1e-4)
    first, alone = (lines(tmp_path / run)[0]["stream_rms"] for run in ("ranks", "alone"))
    assert len(first) == 4 and first == pytest.approx(alone, rel=0.05)  # of the rows of both ranks, not of one


def test_the_process_of_a_trial_prints_no_roles(mine: TrainConfig, capfd: pytest.CaptureFixture[str]) -> None:
    user = user_model(f"{CODE}:attached", mine, vocab_size=16)
    assert user.roles and param_groups(user.model, lr=0.01)
    assert capfd.readouterr().err == ""


def test_ranks_refuse_batches_that_cannot_be_shared(mine: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        f"import sys; sys.path.insert(0, {str(POINTS.parent)!r})\nfrom user_examples import make_model\n"
        "import torch\ndef make_batch(split, step, seed, batch_size):\n"
        "    return torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)\n"
    )
    config = mine.using(f"{tmp_path}/odd.py:make_model")
    answers = finish(begin(2, ranked_run, config.to_dict(), str(tmp_path / "run")))
    assert any("must give 4 rows (batch_size) for ranks to share them" in str(value) for _, value in answers)


def test_code_that_changed_is_refused_and_a_comment_is_not(mine: TrainConfig, tmp_path: Path) -> None:
    file = tmp_path / "changing.py"
    file.write_text(CODE.read_text())
    config = mine.using(f"{file}:make_model")
    train_run(config, tmp_path / "run")
    file.write_text('"""Other words."""\n\n# and a comment\n' + CODE.read_text().partition("\n")[2])
    assert resume_run(tmp_path / "run").status == "finished"
    file.write_text(CODE.read_text().replace("nn.LayerNorm(2)", "nn.LayerNorm(3)"))
    with pytest.raises(UserError, match=r"changing\.py:make_model has changed since .*run began, comments aside"):
        resume_run(tmp_path / "run")


def test_a_folder_of_another_model_is_one_sentence(
    run: Path, mine: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = f"{CODE}:attached"
    assert main(["train", "--resume", str(run), "--model", other]) == 2
    assert f"{run} is a run of {mine.model.factory}, not of {other}: name another folder" in capsys.readouterr().err
    (tmp_path / "c.toml").write_text(mine.to_toml())
    assert main(["train", str(tmp_path / "c.toml"), "--model", other, "--out", str(run), "--continue"]) == 2
    assert "holds a run with model.factory" in capsys.readouterr().err
    shutil.copy(CODE, tmp_path / "moved.py")
    assert main(["train", "--resume", str(run), "--model", f"{tmp_path}/moved.py:make_model"]) == 0
    assert open_run(run).config.model.factory == f"{tmp_path}/moved.py:make_model"


def test_a_finished_run_goes_on_for_more_steps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = str(open_run(run).config.model.factory)
    assert main(["train", "--resume", str(run)]) == 2
    assert f"code that runs only where you name it: add --model {named}" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--resume", str(run), "--model", named, "--set", "train.steps=16"]) == 0
    assert "train.steps was 12 and is now 16: from this step on the run no longer reproduces" in capsys.readouterr().err
    assert len(lines(run)) == 16 and open_run(run).config.train.steps == 16
    assert resume_run(run).status == "finished"


def test_a_run_begins_with_the_weights_of_another(
    finished: Path, mine: TrainConfig, tiny: TrainConfig, tmp_path: Path
) -> None:
    train_run(mine.replaced("train", init_from=str(finished), steps=2), tmp_path / "second")
    assert lines(tmp_path / "second")[0]["loss"] < lines(finished)[0]["loss"] - 0.1
    shutil.rmtree(tmp_path / "second/checkpoints")
    before = lines(tmp_path / "second")
    resume_run(tmp_path / "second")
    assert lines(tmp_path / "second") == before, "a run that lost its checkpoints begins with the same weights again"
    with pytest.raises(UserError, match="do not fit this model: --init-from needs a run of the same shapes"):
        train_run(tiny.replaced("train", init_from=str(finished)), tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_the_command_trains_without_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(POINTS, tmp_path / "mine.py")
    sets = [f"--set=train.{key}" for key in ("steps=3", "eval_batches=1", "device=cpu")]
    assert main(["train", "--model", "mine.py:make_model", *sets]) == 0
    (line, *_) = lines(tmp_path / "runs/mine")
    assert line["step"] == 1 and not (tmp_path / "runs/mine/tokenizer.json").exists()


def test_without_a_config_the_factorys_own_size_holds(tmp_path: Path) -> None:
    place = tmp_path / "mine.py"
    place.write_text("def make_model(loops, layers=6, *, rule='looped', width=48, vocab_size=SIZE): ...\n")
    given = dict.fromkeys(("config", "tuned", "rule", "init_from")) | {"model": f"{place}:make_model", "sets": ()}
    for sets, size in (((), (6, 48)), (("model.layers=2",), (2, 48))):
        model = asked_config(given | {"sets": sets}, print).model
        assert (model.layers, model.width) == size


@pytest.mark.parametrize(
    "name,sets,words",
    [
        ("deaf", [], "takes no 'loops': let it take loops, layers and width, by these names"),
        ("make_model", ["train.compile=true"], "train.compile is an option of the house model"),
        ("make_model", ["train.recompute=1"], "train.recompute is an option of the house model"),
        ("make_model", ["model.sampler=poisson"], "model.sampler is an option of the house model"),
    ],
)
def test_what_a_user_model_cannot_do_is_one_sentence_and_no_folder(
    name: str, sets: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run"), *(f"--set={text}" for text in ("train.device=cpu", *sets))]
    assert main(["train", "--model", f"{CODE}:{name}", *out]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_factory_without_a_config_keeps_its_own_defaults() -> None:
    def width(**given: int) -> int:
        return int(user_model(f"{Path(__file__).parent}/user_defaults.py:make_model", **given).model.in_features)

    assert width() == 7 and width(width=9) == 9
    with pytest.raises(UserError, match="takes no 'layers', so layers = 3 cannot reach it"):
        width(layers=3)
    before = torch.get_rng_state()
    user_model(f"{CODE}:make_model", loops=2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_plan_runs_no_code_that_only_the_config_names(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(finished / "config.toml"), "--gpus", "1"]) == 2
    assert "user_code.py:make_model, code that runs only where you name it: add --model" in capsys.readouterr().err


def test_two_ranks_are_really_asked(mine: TrainConfig) -> None:
    """The helper of this file's tests trains on as many ranks as it says."""
    from ranked import losses

    one, two = (on_ranks(count, losses, mine.to_dict(), 2) for count in (1, 2))
    assert two[0]["losses"] == two[1]["losses"] == pytest.approx(one[0]["losses"], abs=1e-5)


@pytest.mark.parametrize(
    ("roles", "sentence"),
    [
        ("{'a': 'hidden'}", "no role for parameter 'b.weight', 'b.bias': give each one of"),
        ("{'a': 'hidden', 'b': 'out'}", "'out' is no role: did you mean 'readout'"),
        ("{'a': 'hidden', 'b': 'readout', 'c': 'hidden'}", "roles= names 'c', which the model does not have"),
        ("None", "roles(model) gave a NoneType"),
    ],
)
def test_roles_that_do_not_fit_show_the_format_and_name_attach(tmp_path: Path, roles: str, sentence: str) -> None:
    code = "import torch\nfrom torch import nn\n\ndef make_model(loops):\n    model = nn.Module()\n"
    code += "    model.a, model.b = nn.Parameter(torch.ones(2, 2)), nn.Linear(2, 2)\n    return model\n\n"
    (tmp_path / "m.py").write_text(f"{code}def roles(model):\n    return {roles}\n")
    with pytest.raises(UserError) as caught:
        user_model(f"{tmp_path}/m.py:make_model").roles  # noqa: B018
    assert str(caught.value).startswith(sentence)
    assert "give every role, such as {'a': 'hidden'}, or call attach(model, loops=loops) in" in str(caught.value)
    (tmp_path / "n.py").write_text(f"{code}def roles(model):\n    return {{'a': 'hidden', 'b': 'readout'}}\n")
    found = user_model(f"{tmp_path}/n.py:make_model").roles
    assert {name: role.value for name, role in found.items()} == {
        "a": "hidden",
        "b.weight": "readout",
        "b.bias": "outer_gain",
    }


def test_roles_beside_a_factory_with_a_loop_may_name_some(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import loopscale as ls\nfrom torch import nn\n\n"
        "def make_model(loops, rule='looped', strength=1.0, base_layers=None):\n"
        "    core = ls.Loop(ls.ScaledResidual(nn.Linear(4, 4)), loops, rule, strength=strength, base_layers=base_layers)\n"
        "    return nn.Sequential(nn.Linear(2, 4), core, nn.Linear(4, 2))\n\n"
        "def roles(model):\n    return {'0': 'embedding', '2': 'readout'}\n"
    )
    found = user_model(f"{tmp_path}/m.py:make_model").roles
    assert found["0.weight"].value == "embedding" and found["1.stack.branch.weight"].value == "hidden"
