"""Depth rules that a model carries already: two of them, one on top of the other, scale the branches twice.

A factor in the forward pass (a `ScaledUpdate` of ours, Granite's `residual_multiplier`, MiniCPM's `scale_depth`) is
refused; what lives in weights (GPT-2's initial std, LayerScale) is warned of, since training may have moved it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.adapt.branches import Branch
from loopscale.nn import Loop
from loopscale.nn.residual import HoldsScale

# attribute of a config -> the value at which it does nothing
FACTORS = {"residual_multiplier": 1.0, "scale_depth": None, "depth_multiplier": 1.0, "residual_scale": 1.0}
LAYER_SCALES = ("layer_scale", "layerscale", "lambda_1", "lambda_2", "lambda1", "gamma_1", "gamma_2", "ls1", "ls2")
OUTPUTS = (
    "o_proj",
    "out_proj",
    "c_proj",
    "dense",
    "fc2",
    "down_proj",
    "wo",
    "w2",
    "proj",
    "out",
    "fc_out",
    "o",
    "linear2",
)


class DepthRuleWarning(UserWarning):
    """A second depth rule was found in the model's weights."""


def factor_in_modules(model: nn.Module) -> str | None:
    """Return a sentence naming a `Loop` or a scaled residual that the model holds, if any."""
    for name, module in model.named_modules():
        if isinstance(module, (Loop, HoldsScale)):
            return (
                f"{name or 'the model'!r} is a {type(module).__name__} and scales its branches itself, a second scale "
                "would square eps: give the rule and its strength to the Loop around it, and leave attach out"
            )
    return None


def factor_in_config(model: nn.Module) -> str | None:
    """Return a sentence naming the residual factor of the model's config, if it has one that acts."""
    config: Any = getattr(model, "config", None)
    for name, neutral in FACTORS.items():
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value != neutral:
            return (
                f"the model's config has {name} = {value:g}, a depth rule of its own, and a second one would scale the "
                f"branches twice: build the model with {name} = {1 if neutral is None else neutral:g}, "
                "or pass stacked='allow' and choose strength= to make up for it"
            )
    return None


def in_weights(model: nn.Module, branches: Sequence[Branch]) -> list[str]:
    """Return sentences about depth rules seen in the weights."""
    return [sentence for sentence in (_layer_scale(model, branches), _small_outputs(model, branches)) if sentence]


def _layer_scale(model: nn.Module, branches: Sequence[Branch]) -> str | None:
    layers = {branch.layer for branch in branches}
    for name, parameter in model.named_parameters():
        inside = any(name.startswith(layer + ".") for layer in layers)
        part = name.lower().removesuffix(".weight").removesuffix(".gamma")
        if inside and parameter.ndim <= 1 and not parameter.is_meta and any(mark in part for mark in LAYER_SCALES):
            size = float(parameter.detach().float().abs().mean())
            if abs(size - 1) > 1e-3:
                return (
                    f"{name!r} is a LayerScale of mean size {size:.2g}, which multiplies every branch already: start it "
                    "at 1 (config.layerscale_value, layer_scale_init_value) or choose strength= to make up for it"
                )
    return None


def _small_outputs(model: nn.Module, branches: Sequence[Branch]) -> str | None:
    """Tell GPT-2's initial std of output projections, std / sqrt(2 L) (or / sqrt(L)), by the weights themselves."""
    layers = len({branch.layer for branch in branches})
    if layers < 2:
        return None
    outputs: list[float] = []
    others: list[float] = []
    by_fan_in: dict[bool, list[float]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2 or parameter.is_meta or not any(name.startswith(b.layer + ".") for b in branches):
            continue
        last = name.removesuffix(".weight").rpartition(".")[2] in OUTPUTS
        (outputs if last else others).append(_std(parameter))
        by_fan_in[last].append(_std(parameter) * math.sqrt((max if last else min)(parameter.shape)))
    if not outputs or not others:
        return None
    ratio = _ratio(outputs, others)
    expected = 1 / math.sqrt(2 * layers)
    if not 0.85 * expected < ratio < 1.15 * expected or ratio > 0.8:
        return None
    if (
        0.85 < _ratio(by_fan_in[True], by_fan_in[False]) < 1.15
    ):  # 1/sqrt(fan_in) everywhere: smaller only for being wider
        return None
    return (
        f"the output projections are initialised at {ratio:.3f} of the other matrices, about 1/sqrt(2 * {layers}): a depth "
        f"rule of its own (GPT-2's) so the branches start too small: multiply them by {1 / ratio:.3g} before training"
    )


def _ratio(outputs: list[float], others: list[float]) -> float:
    return float(torch.tensor(outputs).median() / torch.tensor(others).median().clamp_min(1e-30))


def _std(parameter: Tensor) -> float:
    return float(parameter.detach().float().std())
