"""Several ranks train what one trains: the same losses, collectives whose number does not depend on N, no hang."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import ranked
import torch
from changed import changed
from ranks import begin, finish, on_ranks
from safetensors.torch import load_file

from loopscale.errors import UserError
from loopscale.train import TrainConfig, generate, open_run, resume_run, train_run
from loopscale.train.load_model import load_model
from loopscale.train.loop import train_step
from loopscale.train.parallel import check_share
from loopscale.train.training import prepare
from loopscale.train.world import World


@pytest.fixture(scope="module")
def values(tiny: TrainConfig) -> dict[str, Any]:
    sections = {"train": {"steps": 50, "checkpoint_every": 10, "eval_every": 25, "eval_batches": 3}}
    return changed(tiny, **sections).to_dict()


def with_(values: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    return {**values, **{name: {**values[name], **section} for name, section in sections.items()}}


@pytest.fixture(scope="module")
def alone(values: dict[str, Any]) -> dict[str, Any]:
    return ranked.losses(values, 50)


@pytest.mark.parametrize(
    ("ranks", "train"),
    [
        (2, {"strategy": "ddp"}),
        (2, {"strategy": "fsdp"}),
        (2, {"strategy": "fsdp", "accumulate": 2, "recompute": 1}),
        pytest.param(2, {"strategy": "ddp", "accumulate": 2}, marks=pytest.mark.slow),
        (1, {"accumulate": 4}),
    ],
)
def test_the_losses_do_not_depend_on_how_the_batch_is_dealt_out(
    values: dict[str, Any], alone: dict[str, Any], ranks: int, train: dict[str, Any]
) -> None:
    for answer in on_ranks(ranks, ranked.losses, with_(values, train=train), 50):
        assert answer["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert answer["norms"] == pytest.approx(alone["norms"], rel=1e-3)
        assert answer["val_loss"] == pytest.approx(alone["val_loss"], abs=1e-5)
        assert answer["stream_rms"] == pytest.approx(alone["stream_rms"], rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_sampled_loops_on_two_ranks_keep_one_compiled_graph_and_the_eager_losses(
    values: dict[str, Any], strategy: str
) -> None:
    sampled = with_(values, model={"sampler": {"kind": "poisson", "mean": 3}}, train={"strategy": strategy})
    eager = on_ranks(2, ranked.losses, sampled, 8)[0]["losses"]
    for answer in on_ranks(2, ranked.compiled, with_(sampled, train={"compile": True}), 8):
        assert len(set(answer["loops"])) >= 3 and answer["graphs"] == (1, 1)
        assert answer["losses"] == pytest.approx(eager, abs=1e-5)


def test_muon_on_replicas_too(values: dict[str, Any]) -> None:
    muon = with_(values, optim={"optimizer": "muon"})
    alone = ranked.losses(muon, 5)["losses"]  # its iteration runs in bf16: rounding shows early
    for answer in on_ranks(2, ranked.losses, muon, 5):
        assert answer["losses"] == pytest.approx(alone, abs=5e-3)


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_collectives_in_a_step_do_not_depend_on_loops(values: dict[str, Any], strategy: str) -> None:
    shape = with_(values, model={"prelude": 1, "coda": 1, "layers": 2}, train={"strategy": strategy})
    few, many = (on_ranks(2, ranked.collectives, shape, loops)[0] for loops in (1, 16))
    assert few == many and sum(few.values()) > 0
    if strategy == "fsdp":
        gathers = sum(count for name, count in many.items() if "allgather" in name)
        scatters = sum(count for name, count in many.items() if "reduce_scatter" in name)
        assert (gathers, scatters) == (2, 2)  # the loop once, all the rest once


@pytest.mark.slow
def test_gathered_once_also_when_accumulating(values: dict[str, Any]) -> None:
    shape = with_(values, train={"strategy": "fsdp", "accumulate": 2})
    counts = on_ranks(2, ranked.collectives, shape, 4)[0]
    assert sum(count for name, count in counts.items() if "allgather" in name) == 2
    assert sum(count for name, count in counts.items() if "reduce_scatter" in name) == 2


def test_bf16_keeps_the_stream_and_the_sum_in_fp32(values: dict[str, Any]) -> None:
    bf16 = with_(values, train={"precision": "bf16", "strategy": "fsdp"})
    alone = ranked.losses(with_(bf16, train={"strategy": "ddp"}), 20)["losses"]
    assert on_ranks(2, ranked.losses, bf16, 20)[0]["losses"] == pytest.approx(alone, abs=2e-2)


def curve(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_is_continued_on_another_number_of_ranks(
    values: dict[str, Any], alone: dict[str, Any], tmp_path: Path, strategy: str, before: int, after: int
) -> None:
    config = with_(values, train={"strategy": strategy})
    stopped = on_ranks(before, ranked.run, config, str(tmp_path / "run"), 23, 0, signal.SIGTERM)
    assert all((answer["status"], answer["step"], answer["code"]) == ("stopped", 23, 143) for answer in stopped)
    newest = tmp_path / "run/checkpoints/step-000023"
    assert (newest / "model-00002-of-00002.safetensors").exists() is (strategy == "fsdp" and before == 2)
    weights = load_model(tmp_path / "run").model.state_dict()
    if strategy == "ddp" or before == 1:
        assert all(torch.equal(value, weights[name]) for name, value in load_file(newest / "model.safetensors").items())
    answers = on_ranks(after, ranked.run, config, str(tmp_path / "run"))
    assert [answer["status"] for answer in answers] == ["finished"] * after
    assert curve(tmp_path / "run") == pytest.approx(alone["losses"], abs=1e-5)
    assert generate(tmp_path / "run", "loop ", 5).startswith("loop ")


def test_sharded_checkpoints_are_checked_too(values: dict[str, Any], tmp_path: Path) -> None:
    config = with_(values, train={"strategy": "fsdp", "steps": 20})
    on_ranks(2, ranked.run, config, str(tmp_path / "run"))
    newest, before = tmp_path / "run/checkpoints/step-000020", tmp_path / "run/checkpoints/step-000010"
    part = newest / "optimizer-00002-of-00002.safetensors"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    said: list[str] = []
    assert resume_run(tmp_path / "run", warn=said.append).status == "finished"
    assert said == [
        "checkpoint step-000020 is damaged (optimizer-00002-of-00002.safetensors does not match its checksum): "
        "the one before it is used"
    ]
    assert before.is_dir() and open_run(tmp_path / "run").newest_whole(said.append) == newest


def test_a_lost_rank_ends_the_others_with_a_sentence(
    values: dict[str, Any], alone: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    answers = finish(begin(2, ranked.run, values, str(run), 27, 1))
    assert answers[1] == ("lost", None)
    fix = f"continue from the last checkpoint with torchrun ... -m loopscale train --resume {run}"
    assert answers[0] == ("error", f"UserError: a rank was lost: {fix}")
    on_ranks(2, ranked.run, values, str(run))
    assert curve(run) == pytest.approx(alone["losses"], abs=1e-5)


def sentences(answers: list[tuple[str, Any]]) -> list[str]:
    assert [kind for kind, _ in answers] == ["error"] * len(answers), answers
    return [text for _, text in answers]


def test_a_batch_that_cannot_be_dealt_out(values: dict[str, Any], tiny: TrainConfig, tmp_path: Path) -> None:
    first, *rest = sentences(finish(begin(3, ranked.run, values, str(tmp_path / "run"))))
    assert first == (
        "UserError: data.batch_size = 4 cannot be dealt out to 3 ranks: use a multiple of 3, or another number of ranks"
    )
    assert all(text.startswith("AgreedError: data.batch_size") for text in rest)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"cannot be dealt out to 1 ranks x 3 accumulated parts: use a multiple of 3"):
        train_run(changed(tiny, train={"accumulate": 3}), tmp_path / "run")


def test_ranks_that_disagree_on_the_config(values: dict[str, Any], tmp_path: Path) -> None:
    texts = sentences(finish(begin(2, ranked.differing_run, values, str(tmp_path / "run"))))
    assert texts[0] == (
        "UserError: the ranks disagree on the config: optim.lr is 0.0078125 on rank 0 and 0.5 on rank 1: "
        "start every rank with the same file and the same --set"
    )
    assert texts[1].startswith("AgreedError: ") and not (tmp_path / "run").exists()


def test_what_fails_on_one_rank_ends_all(values: dict[str, Any], text: Path, tmp_path: Path) -> None:
    texts = sentences(finish(begin(2, ranked.broken_run, values, str(tmp_path / "run"), str(tmp_path / "absent"))))
    assert texts[0].startswith("UserError: there is no data file or folder") and texts[0].endswith("(rank 1)")
    (tmp_path / "other.txt").write_text("other text " * 500)
    texts = sentences(finish(begin(2, ranked.broken_run, values, str(tmp_path / "run"), str(tmp_path / "other.txt"))))
    assert texts[0].startswith("UserError: the ranks disagree on the data: sha256 is")


def test_a_gpu_that_is_not_there(values: dict[str, Any], tmp_path: Path) -> None:
    texts = sentences(finish(begin(2, ranked.run, with_(values, train={"device": "cuda"}), str(tmp_path / "run"))))
    assert texts[0].startswith("UserError: train.device = 'cuda', but torch sees no GPU here")


def test_muon_is_not_sharded(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Muon needs whole matrices"):
        check_share(
            ranked.config_of(with_(values, optim={"optimizer": "muon"}, train={"strategy": "fsdp"})), World(0, 2)
        )


def test_accumulation_is_the_big_batch(tiny: TrainConfig) -> None:
    free = changed(tiny, optim={"clip": 0.0})  # clipping would hide a gradient of another size
    big, parts = prepare(free), prepare(changed(free, train={"accumulate": 4}))
    assert train_step(big).loss == pytest.approx(train_step(parts).loss, abs=1e-6)
    for one, other in zip(big.parameters, parts.parameters, strict=True):
        assert (one.grad - other.grad).abs().max() < 1e-6
