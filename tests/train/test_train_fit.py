"""Training in memory: it learns, it repeats itself, and divergence is a result."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from changed import changed

from loopscale.errors import UserError
from loopscale.train import StepRecord, TrainConfig, fit
from loopscale.train.fitting import PATIENCE, Course
from loopscale.train.loop import train_step
from loopscale.train.training import prepare


def test_it_learns_and_its_record_is_json(tiny: TrainConfig) -> None:
    result = fit(changed(tiny, train={"steps": 60}))
    assert result.diverged_at is None and result.val_loss is not None
    assert result.val_loss < result.curve[0][1] - 1
    assert len(result.stream_initial) == len(result.stream_final) == tiny.model.loops + 1
    json.dumps(dataclasses.asdict(result), allow_nan=False)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_it_is_a_pure_function_of_the_config(tiny: TrainConfig, optimizer: str) -> None:
    config = changed(tiny, optim={"optimizer": optimizer})
    first, second = (dataclasses.replace(fit(config), seconds=0.0) for _ in range(2))
    assert first == second
    other = changed(config, train={"seed": 1})
    assert fit(other).curve != first.curve


def test_observer_sees_each_step_and_stop_ends_it(tiny: TrainConfig) -> None:
    seen: list[StepRecord] = []
    result = fit(tiny, stop=lambda record: seen.append(record) or record.step == 5)
    assert [record.step for record in seen] == [1, 2, 3, 4, 5]
    assert result.stopped and result.steps == 5 and result.val_loss is None and result.diverged_at is None


def test_an_absurd_rate_diverges(tiny: TrainConfig) -> None:
    result = fit(changed(tiny, optim={"lr": 1e12, "warmup": 0.0, "clip": 0.0}))
    assert result.diverged_at is not None and result.val_loss is None
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_a_non_finite_step_leaves_the_weights(tiny: TrainConfig) -> None:
    training = prepare(tiny)
    with_nan = next(training.model.parameters())
    with_nan.data[:] = math.nan
    before = {name: p.clone() for name, p in training.model.named_parameters() if p is not with_nan}
    record = train_step(training)
    assert not record.finite and training.done == 0
    assert all((p == before[name]).all() for name, p in training.model.named_parameters() if name in before)


def test_clipping_bounds_the_update_but_not_the_reported_norm(tiny: TrainConfig) -> None:
    free, clipped = (
        prepare(changed(tiny, optim={"optimizer": "sgd", "clip": clip, "weight_decay": 0.0})) for clip in (0.0, 1e-6)
    )
    before = [p.detach().clone() for p in clipped.parameters]
    assert train_step(free).grad_norm == train_step(clipped).grad_norm
    moved = sum(float((p.detach() - q).square().sum()) for p, q in zip(clipped.parameters, before, strict=True)) ** 0.5
    assert 0 < moved < 1e-6


def step(number: int, loss: float) -> StepRecord:
    return StepRecord(number, loss, 0.1, 1.0)


def test_what_diverged_means() -> None:
    worse, exploded, spike, infinite = Course(20), Course(100), Course(20), Course(100)
    for number in range(1, 21):
        assert worse.running and spike.running
        worse.take(step(number, 5.0 if number == 1 else 7.0))
        spike.take(step(number, 50.0 if number == 3 else 5.0))
    assert worse.diverged_at == 20 and not worse.whole and spike.diverged_at is None and spike.whole
    for number in range(1, PATIENCE + 2):
        assert exploded.running
        exploded.take(step(number, 1.0 if number == 1 else 9.0))
    assert exploded.diverged_at == 2 and not exploded.running
    infinite.take(step(4, math.inf))
    assert infinite.diverged_at == 4 and not infinite.running


def test_a_vocabulary_smaller_than_the_datas_is_refused(tiny: TrainConfig) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size = 3 is less than the \d+ tokens of the data"):
        fit(changed(tiny, model={"vocab_size": 3}))


def test_bf16_keeps_weights_and_loss_in_fp32(tiny: TrainConfig) -> None:
    training = prepare(changed(tiny, train={"precision": "bf16"}))
    assert train_step(training).finite
    assert {str(p.dtype) for p in training.parameters} == {"torch.float32"}
