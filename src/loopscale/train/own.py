"""A model of the user's own, made by a factory; its roles, batches and loss.

The factory `make_model(loops, layers, width, ...)` takes what it wants of `OFFERED`, by name. Its module may also have

    make_batch(split, step, seed, batch_size)   any batch: tensors or arrays, alone, in a tuple or in a dict;
                                                `split` is "train" or "validation". Without it: tokens of data.path
    loss(model, batch)                          a scalar tensor. Without it: the model's own scalar, or cross-entropy
    roles(model)                                name -> Role. Without it: the model's `roles()`, else inferred
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopscale.errors import UserError
from loopscale.factory import OFFERED, heard
from loopscale.optim import roles_of
from loopscale.optim.roles_of import taken_as_hidden, tell_roles
from loopscale.parameterization import Depth, Role, Width, check_roles, get_rule
from loopscale.speaker import speakers
from loopscale.train.config import TrainConfig
from loopscale.train.place import describe, load_place
from loopscale.train.training import pick_device


@dataclass(frozen=True)
class OwnModel:
    """A model of the user's, its batches and its loss; made by `make_own`. `unsure` names roles that are mere guesses."""

    model: nn.Module
    roles: dict[str, Role]
    inferred: bool
    batches: Callable[[str], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    unsure: tuple[str, ...] = ()

    def doubts(self) -> list[str]:
        """What to warn of before a trial: roles that were guessed."""
        return [taken_as_hidden(self.unsure, "roles(model) beside the factory")] if self.unsure else []

    def try_once(self) -> float:
        """The loss on the first training batch, backward included; raises `UserError` when that fails.

        Every parameter that is not frozen must have a role.
        """
        check_roles(dict(self.model.named_parameters()), self.roles)
        batch = next(self.batches("train"))
        try:
            loss = scalar(self.loss(self.model, batch))
            loss.backward()  # type: ignore[no-untyped-call]
        except UserError:
            raise
        except (Exception, SystemExit) as cause:
            raise UserError(f"the model failed on its first batch: {describe(cause)}") from cause
        self.model.zero_grad()
        return float(loss.detach())


def takes(place: str) -> set[str]:
    """The names that the factory takes of those on offer.

    Raises `UserError` when it takes no loops, when no rule can reach it, or when it needs something not on offer.
    """
    factory, _ = load_place(place)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        raise UserError(f"{place} does not say which arguments it takes: write it as a function") from None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return set(OFFERED.split(", "))
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    others = [p for p in parameters if p not in by_name and p.kind != p.VAR_POSITIONAL]
    strange = [p.name for p in others if p.default is p.empty]
    if strange:
        raise UserError(f"{place} takes {strange[0]!r} by position alone: let it be given by name")
    return heard(place, {p.name for p in by_name}, [p.name for p in by_name if p.default is p.empty])


def make_own(place: str, config: TrainConfig) -> OwnModel:
    """Build the model at the config's size, on its device, from its seed.

    Raises `UserError`, one sentence, for whatever the factory or its module does wrong.
    """
    factory, module = load_place(place)
    batches, vocab_size = _batches(module, config)
    asked = takes(place)
    values = {name: value for name, value in _offer(config, vocab_size).items() if name in asked}
    try:
        model = factory(**values)
    except UserError:
        raise
    except (Exception, SystemExit) as cause:
        shown = ", ".join(f"{name}={values[name]}" for name in ("loops", "layers", "width") if name in values)
        raise UserError(f"{place} raised at {shown}: {describe(cause)}") from cause
    if not isinstance(model, nn.Module):
        raise UserError(f"{place} returned a {type(model).__name__}: it must return a torch.nn.Module")
    model.to(pick_device(config.train.device))
    roles, inferred, unsure = _roles(model, module)
    return OwnModel(model, roles, inferred, batches, getattr(module, "loss", default_loss), unsure)


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """The scalar that the model returns, or the cross-entropy of its logits [..., V] with the batch's targets [...].

    A dict goes in by name. A pair goes in whole when `forward` needs two arguments, else its first half. A `loss` or
    `logits` attribute of the output, as in transformers, is found.

    Raises `UserError` when neither comes out.
    """
    if isinstance(batch, Mapping):
        output, targets = model(**batch), batch.get("labels", batch.get("targets"))
    elif isinstance(batch, (tuple, list)):
        output = model(*batch) if _required(model) > 1 else model(batch[0])
        targets = batch[1] if len(batch) > 1 else None
    else:
        output, targets = model(batch), None
    loss = getattr(output, "loss", None)
    parts = output if isinstance(output, (tuple, list)) else [output]
    scalars = [part for part in (loss, *parts) if isinstance(part, Tensor) and part.ndim == 0]
    if scalars:
        return scalars[0]
    logits = getattr(output, "logits", parts[0])
    if isinstance(logits, Tensor) and isinstance(targets, Tensor) and logits.shape[:-1] == targets.shape:
        return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise UserError(
        f"the model gave {shape}: return a scalar loss, or logits [..., V] for targets [...], or define "
        "loss(model, batch) beside the factory, which returns a scalar tensor"
    )


def scalar(loss: Any) -> Tensor:
    """The loss as it is; raises `UserError` unless it is a tensor without axes."""
    if not isinstance(loss, Tensor) or loss.ndim:
        kind = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"loss(model, batch) gave {kind}: it must return a tensor without axes")
    return loss


def _required(model: nn.Module) -> int:
    """How many arguments `forward` cannot do without."""
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _offer(config: TrainConfig, vocab_size: int | None) -> dict[str, Any]:
    size = config.model
    rule, depth, width = get_rule(size.rule), Depth(size.loops, size.layers), Width(size.width, size.base_width)
    return {
        **{name: getattr(size, name) for name in ("loops", "layers", "width", "rule", "strength")},
        **{name: getattr(size, name) for name in ("base_layers", "base_width")},
        "vocab_size": size.vocab_size or vocab_size,
        "context": config.data.context,
        "seed": config.train.seed,
        "residual_scale": rule.residual_scale(depth, size.strength, size.base_layers).value,
        "output_multiplier": rule.output_multiplier(width).value,
    }


def _batches(module: ModuleType, config: TrainConfig) -> tuple[Callable[[str], Iterator[Any]], int | None]:
    device, size, seed = pick_device(config.train.device), config.data.batch_size, config.train.seed
    make = getattr(module, "make_batch", None)
    if make is not None:

        def made(split: str) -> Iterator[Any]:
            step = 0
            while True:
                # The validation batches are the same for every seed.
                yield _on(make(split, step, seed if split == "train" else 0, size), device)
                step += 1

        return made, None
    dataset = config.load_data()

    def tokens(split: str) -> Iterator[Any]:
        if split == "validation":
            pairs = dataset.validation_batches(size, config.data.context, config.train.eval_batches)
            yield from (_on(pair, device) for pair in pairs)
            return
        step = 0
        while True:
            yield _on(dataset.batch(step, seed, size, config.data.context), device)
            step += 1

    return tokens, dataset.vocab_size


def _on(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {name: _on(part, device) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_on(part, device) for part in batch)
    if not isinstance(batch, (Tensor, np.ndarray)):
        return batch
    # Inputs and targets are cut from one array; many a loss flattens its targets with `view`.
    return torch.as_tensor(batch).to(device).contiguous()


def _roles(model: nn.Module, module: ModuleType) -> tuple[dict[str, Role], bool, tuple[str, ...]]:
    """Roles, whether they are inferred, and the names that were no more than guessed."""
    stated: Any = getattr(module, "roles", None)
    if stated is not None:
        return {name: Role(role) for name, role in stated(model).items()}, False, ()
    said = callable(getattr(model, "roles", None))
    if said or speakers(model):
        return roles_of(model), not said, ()
    roles, unsure = tell_roles(model)
    return roles, True, tuple(unsure)
