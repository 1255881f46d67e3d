"""The options of the loop reach a run: from TOML and --set, into the step, exactly again after a resume."""

import json

import pytest
import torch

from loopscale.errors import UserError
from loopscale.train import generate, load_config, make_config, resume_run, train_run
from loopscale.train.loop import train_step
from loopscale.train.training import prepare

TINY = {
    "model": {"width": 32, "head_dim": 16, "loops": 4},
    "data": {"path": "synthetic:copy", "context": 16, "batch_size": 2},
    "train": {"steps": 6, "checkpoint_every": 3, "eval_batches": 1, "device": "cpu"},
}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_sampled_number_of_loops_is_repeated_exactly_after_a_resume(tmp_path):
    config = make_config(TINY, ['model.sampler={kind="poisson", mean=3, most=8}', "model.injection=diagonal"])
    whole = train_run(config, tmp_path / "whole")
    assert whole.status == "finished"
    drawn = [line["loops"] for line in lines(tmp_path / "whole")]
    assert len(set(drawn)) > 1 and max(drawn) <= 8
    cut = tmp_path / "cut"
    train_run(config, cut, on_step=_stop_after(4))
    resume_run(cut)
    kept = ("step", "loss", "grad_norm", "loops")
    assert [[line[key] for key in kept] for line in lines(cut)] == [
        [line[key] for key in kept] for line in lines(tmp_path / "whole")
    ]
    assert load_config(cut / "config.toml") == config.replaced("train", precision="fp32")


def _stop_after(step):
    import os
    import signal

    return lambda line, total: os.kill(os.getpid(), signal.SIGINT) if line["step"] == step else None


def test_growing_loops_make_their_visits():
    grow = '{kind="grow", stages=[[0, 1], [0.5, 4]]}'
    training, visits = prepare(make_config(TINY, [f"model.sampler={grow}"])), []
    training.model.core[0].attention_norm.register_forward_pre_hook(lambda *_: visits.append(1))
    for _ in range(6):
        train_step(training)
    assert len(visits) == 3 * 1 + 3 * 4


def test_recomputation_from_the_config_changes_no_loss():
    plain, less = (prepare(make_config(TINY, sets)) for sets in ([], ["train.recompute=1", "train.recompute_keep=2"]))
    assert less.model.core.recompute.every == 1 and less.model.core.recompute.keep == 2
    for _ in range(2):
        assert train_step(plain).loss == train_step(less).loss
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters, less.parameters, strict=True))


def test_a_tested_number_of_loops_may_freeze_or_rescale(tmp_path):
    train_run(make_config(TINY, ["data.path=stdlib", "data.max_tokens=20000"]), tmp_path / "run")

    def text(**options):
        return generate(tmp_path / "run", "def ", 12, temperature=2.0, **options)

    assert text(loops=4, scale="freeze") == text() == text(exit_below=0.0)
    assert text(loops=32, scale="freeze") != text(loops=32, scale="rescale")
    assert text(loops=32, exit_below=0.99) == text(loops=32, exit_below=0.9)
    with pytest.raises(UserError, match="did you mean 'freeze'"):
        text(loops=8, scale="freez")
    for outside in (-1.0, 1.0, float("nan")):
        with pytest.raises(UserError, match="exit_below is a share of the stream, from 0 to less than 1"):
            text(exit_below=outside)


@pytest.mark.parametrize(
    "change,words",
    [
        ("model.injection=diagnal", "injection has no kind 'diagnal': did you mean 'diagonal'?"),
        ('model.sampler={kind="poisson", man=4}', "has no key 'man': did you mean 'mean'?"),
        ("model.norm=sandwhich", "did you mean 'sandwich'?"),
        ("model.order=3", "config key 'model.order' cannot be 3"),
        ("train.recompute=-1", "config key 'train.recompute' cannot be -1"),
    ],
)
def test_a_wrong_option_in_a_config_gets_a_sentence(change, words):
    with pytest.raises(UserError) as caught:
        make_config(TINY, [change])
    assert words in str(caught.value) and "\n" not in str(caught.value)
