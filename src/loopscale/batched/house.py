"""The house model as members of a stack: configs that differ in rule, strength, seed, rate, decay, warm-up, schedule."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.batched.batched import Member, Stack
from loopscale.data import Dataset
from loopscale.nn import Attention, FixedLoops, LoopedTransformer, Pace, folded_attention
from loopscale.parameterization import Width, get_rule
from loopscale.train.config import TrainConfig
from loopscale.train.house import cross_entropy
from loopscale.train.training import Training, prepare

# What members may differ in; the rule's placement of norms and its multiplier of the logits must agree.
FREE = {
    "model": ("rule", "strength", "base_layers", "norm"),
    "optim": ("lr", "weight_decay", "eps", "clip", "schedule", "warmup"),
    "train": ("seed",),
}


def house_stack(configs: Sequence[TrainConfig], dataset: Dataset | None = None) -> Stack:
    """Stack the trainings of `configs` on one data set; raises `UserError` when one cannot be built."""
    trainings: list[Training] = []
    for config in configs:
        training = prepare(config, dataset)
        trainings.append(training)
        data, tokens = config.data, training.dataset
        if (
            tokens is not None and tokens.bookmark(0, data.batch_size, data.context) is None
        ):  # else read in order: one each
            dataset = tokens
    bf16 = configs[0].train.precision == "bf16"
    model = trainings[0].model
    assert isinstance(model, LoopedTransformer)
    with torch.device("meta"):
        template = LoopedTransformer(model.config)
    for module in template.modules():
        if isinstance(module, Attention):
            module.attend = folded_attention
    device = trainings[0].device.type
    return Stack([_member(training) for training in trainings], _Logits(template, device if bf16 else None))


def why_not(config: TrainConfig) -> str | None:
    """Return the option of a config that keeps its training out of a stack, as a clause; None when there is none."""
    train, sampler = config.train, config.model.sampler
    kind = sampler if isinstance(sampler, str) else sampler.get("kind")
    if kind != FixedLoops().kind:
        return f"model.sampler = {kind!r} draws each trial's own N"
    if train.compile:
        return "train.compile compiles each trial's own loop"
    if train.recompute:
        return "train.recompute is of a single model"
    if train.loss_rows:
        return "train.loss_rows keeps whole logits out of memory, and a stack would hold them"
    if train.accumulate > 1:
        return "train.accumulate cuts each trial's batch"
    return None


def same_graph(config: TrainConfig) -> dict[str, Any]:
    """Return what two configs must share to be stacked: all but rule, strength, seed and the rates of the optimizer."""
    values = config.model_dump(mode="json")
    network = config.network(256)
    for section, names in FREE.items():
        for name in names:
            values[section].pop(name)
    width = Width(network.width, network.base_width)
    logits = get_rule(network.rule).output_multiplier(width).value
    return {**values, "placement": network.placement, "logits": logits}


class _Logits(nn.Module):
    """Logits of a batch at a member's numbers: eps and skip scale outside the core, and in it."""

    def __init__(self, model: LoopedTransformer, autocast: str | None) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, batch: tuple[Tensor, Tensor], numbers: tuple[Any, ...]) -> Tensor:
        once, skip, eps, core_skip = numbers
        paces = Pace(once, skip), Pace(eps, core_skip, self.model.config.loops)
        with nullcontext() if self.autocast is None else torch.autocast(self.autocast, dtype=torch.bfloat16):
            logits_BTV: Tensor = self.model(batch[0], paces=paces)
        return logits_BTV


def _member(training: Training) -> Member:
    model = training.model
    assert isinstance(model, LoopedTransformer)
    outside, core = model.paces(training.config.model.loops)
    numbers = (*map(float, outside[:2]), *map(float, core[:2]))
    return Member(training, _Logits(model, None), lambda logits, batch: cross_entropy(logits, batch[1]), numbers)
