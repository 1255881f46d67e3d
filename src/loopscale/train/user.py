"""A user model: what the factory of a user builds, with its batches, loss and roles; and the task of training it.

The factory `make_model(loops, layers, width, ...)` takes what it wants of `OFFERED`, by name. Its file may also have

    make_batch(split, step, seed, batch_size)   any batch: tensors or arrays, alone, in a tuple or in a dict;
                                                `split` is "train" or "validation". Without it: tokens of data.path
    loss(model, batch)                          a scalar tensor. Without it: the model's own scalar, or cross-entropy
    roles(model)                                name -> Role. Without it: the model's `roles()`, else inferred
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopscale.data import Dataset
from loopscale.errors import UserError, describe, foreign
from loopscale.factory import OFFERED, heard
from loopscale.optim import roles_of
from loopscale.optim.roles import taken_as_hidden, tell_roles
from loopscale.parameterization import Role, check_roles, get_rule, role_by_name
from loopscale.speaker import named_handle, speakers
from loopscale.train.agreement import disagreements
from loopscale.train.config import TrainConfig
from loopscale.train.house import token_batches
from loopscale.train.place import fingerprint, load_place
from loopscale.train.task import Task, Visits, buffers_kept, length, rows_of, to_device


@dataclass(frozen=True)
class UserModel:
    """A model that a factory built, and what its file defines beside the factory; made by `user_model`.

    `loss(model, batch)` is the file's, or `default_loss`; `make_batch` and `state_roles` are None where the file has none.
    """

    place: str
    model: nn.Module
    loss: Callable[[nn.Module, Any], Any]
    make_batch: Callable[[str, int, int, int], Any] | None
    state_roles: Callable[[nn.Module], Mapping[str, Any]] | None

    def batch(self, split: str = "train", step: int = 0, seed: int = 0, batch_size: int = 16) -> Any:
        """Call the file's `make_batch`; what it draws without a generator of its own depends on seed and step alone."""
        assert self.make_batch is not None
        with drawing(seed, step, split == "train"):
            return self.make_batch(split, step, seed, batch_size)

    @cached_property
    def told(self) -> tuple[dict[str, Role], bool, list[str]]:
        """The role of every parameter, whether nobody stated them, and the names that were guessed."""
        if self.state_roles is not None:
            return _stated(self.place, self.model, self.state_roles), False, []
        found, stated = named_handle(self.model), callable(getattr(self.model, "roles", None))
        if found is not None:
            place, handle = found
            handle.announced = True  # a study prints the roles once, not in the process of every trial
            inside = [f"{place}.{name}".strip(".") for name in handle.inside()]
            return roles_of(self.model), not stated, tell_roles(self.model, inside)[1]
        if stated or speakers(self.model):
            return roles_of(self.model), not stated, []
        roles, unsure = tell_roles(self.model)
        return roles, True, unsure

    @property
    def roles(self) -> dict[str, Role]:
        """The role of every parameter: stated, else inferred."""
        return self.told[0]

    def try_once(self, batch: Any) -> float:
        """Give the loss on a batch, backward included; buffers and gradients are as before.

        Raises `UserError` when the loss cannot be computed, or a parameter that is not frozen has no role.
        """
        check_roles(dict(self.model.named_parameters()), self.roles)
        with foreign("the model failed on its first batch"), buffers_kept(self.model):
            loss = scalar(self.loss(self.model, batch))
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())


# How roles are stated, for one parameter; and what makes stating them needless.
FORMAT = "such as {{{!r}: {!r}}}, or call attach(model, loops=loops) in the factory"


def _stated(place: str, model: nn.Module, state: Callable[[nn.Module], Any]) -> dict[str, Role]:
    """Give what the file's `roles` says, a module's name standing for all below it; around a loop the rest is inferred."""
    shown = next(iter(dict(model.named_parameters())), "weight")
    likely = role_by_name(shown, False, False) or Role.HIDDEN
    form = f"let roles(model) beside the factory give every role, {FORMAT.format(shown, likely.value)}"
    try:
        given = state(model)
        if not isinstance(given, Mapping):
            raise UserError(f"roles(model) gave a {type(given).__name__}")
        return roles_of(model, {str(name): Role(role) for name, role in given.items()})
    except UserError as cause:
        raise UserError(f"{cause}; {form}") from None
    except (Exception, SystemExit) as cause:
        raise UserError(f"roles(model) beside {place} raised {describe(cause)}") from None


def user_model(
    place: str, config: TrainConfig | None = None, *, vocab_size: int | None = None, rule: bool = False, **sizes: Any
) -> UserModel:
    """Build the model that the factory at `place` ("file.py:make_model") makes, on the CPU, from the config's seed.

    With a config the factory gets all that it asks for. Without one it gets `sizes` ("loops=8") and what it demands; its
    other arguments keep their own defaults. `sizes` replaces values of the config's model section. `rule`: refuse a factory
    that no rule can reach. What the factory draws leaves the global random state as it was.

    Raises `UserError`, one sentence, for whatever the factory or its file does wrong.
    """
    factory, module = load_place(place)
    taken, demanded = takes(place, rule)
    deaf = next((name for name in sizes if name not in taken), None)
    if deaf is not None:
        raise UserError(f"{place} takes no {deaf!r}, so {deaf} = {sizes[deaf]} cannot reach it: let it take {deaf}")
    base = (TrainConfig() if config is None else config).replaced("model", **sizes)
    wanted = demanded | sizes.keys() if config is None else taken
    values = {name: value for name, value in _offer(base, vocab_size).items() if name in wanted}
    shown = ", ".join(f"{name}={values[name]}" for name in ("loops", "layers", "width") if name in values)
    with foreign(f"{place} raised at {shown}"), drawing(base.train.seed):
        model = factory(**values)
    if not isinstance(model, nn.Module):
        raise UserError(f"{place} returned a {type(model).__name__}: it must return a torch.nn.Module")
    loss = getattr(module, "loss", default_loss)
    return UserModel(place, model, loss, getattr(module, "make_batch", None), getattr(module, "roles", None))


def user_task(config: TrainConfig, dataset: Dataset | None, rows: slice, device: torch.device) -> Task:
    """Build the task of training a user model; `rows` are this process's rows of a batch.

    `dataset` is None where the file makes its batches itself (`makes_batches`).

    Raises `UserError` as `user_model` does, and for values that describe the house model alone.
    """
    _check_values(config)
    place, train = str(config.model.factory), config.train
    user = user_model(place, config, vocab_size=None if dataset is None else dataset.vocab_size)
    user.model.to(device)
    network = _Scored(user)
    data = {"source": f"make_batch of {place}"} if dataset is None else dataset.description
    roles, inferred, unsure = user.told
    origin = {"source": place, "sha256": fingerprint(place), "roles": {n: r.value for n, r in roles.items()}}
    visits = Visits(user.model, roles)
    batches = _batches(user, config, rows) if dataset is None else token_batches(config, dataset, rows)

    def check(target: TrainConfig | None) -> list[str]:
        with drawing(train.seed):
            user.try_once(to_device(batches(0), device))
        said = disagreements(user.model, config, target)
        form = f"roles(model) beside the factory, {FORMAT}"
        return [*said, taken_as_hidden(unsure, f"{form.format(unsure[0], 'hidden')},")] if unsure else said

    return Task(
        config=config,
        model=user.model,
        roles=roles,
        network=network,
        loss=lambda network, batch, loops: network(batch),
        batches=batches,
        validation=lambda: _validation(user, config, dataset),
        loops=lambda step: config.model.loops,
        streams=lambda network, batch: visits.rms(lambda: network(batch)),
        visits=visits,
        dataset=dataset,
        origin={"data": data, "model": {**origin, "roles_inferred": inferred}},
        drawing=lambda step: drawing(train.seed, step, 2 + rows.start),
        evaluating=lambda: _evaluating(user.model, train.seed),
        check=check,
        ahead=dataset is not None,  # the user's code runs in one thread
    )


class _Scored(nn.Module):
    """Give the loss of a batch: what DDP and FSDP wrap, so that the user's `loss` sees the model itself."""

    def __init__(self, user: UserModel) -> None:
        super().__init__()
        self.model, self._loss = user.model, user.loss

    def forward(self, batch: Any) -> Tensor:
        return scalar(self._loss(self.model, batch))


def makes_batches(place: str) -> bool:
    """Say whether the file at `place` has a `make_batch`, so that no tokens are needed."""
    return hasattr(load_place(place)[1], "make_batch")


def _batches(user: UserModel, config: TrainConfig, rows: slice) -> Callable[[int], Any]:
    size, seed = config.data.batch_size, config.train.seed

    def batch(step: int) -> Any:
        whole = user.batch("train", step, seed, size)
        if rows == slice(0, size):
            return whole
        if length(whole) != size:
            raise UserError(f"make_batch of {user.place} must give {size} rows (batch_size) for ranks to share them")
        return rows_of(whole, rows)

    return batch


def _validation(user: UserModel, config: TrainConfig, dataset: Dataset | None) -> Iterator[Any]:
    data, count = config.data, config.train.eval_batches
    if dataset is not None:
        yield from dataset.validation_batches(data.batch_size, data.context, count)
        return
    for number in range(count):  # the same for every seed
        yield user.batch("validation", number, 0, data.batch_size)


def _check_values(config: TrainConfig) -> None:
    """Raise `UserError` for options that only the house model has."""
    for name, off in (("compile", False), ("recompute", 0), ("recompute_keep", None), ("loss_rows", 0)):
        if getattr(config.train, name) != off:
            raise UserError(f"train.{name} is an option of the house model: do this inside {config.model.factory}")
    if config.model.sampler != "fixed":
        raise UserError(f"model.sampler is an option of the house model: draw N inside {config.model.factory}")


@contextmanager
def drawing(seed: int, *turn: int) -> Iterator[None]:
    """Draw random numbers inside from `seed` and `turn` alone, and leave the global generators as they were."""
    number = int(np.random.SeedSequence([seed, *turn]).generate_state(1)[0]) if turn else seed
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _evaluating(model: nn.Module, seed: int) -> Iterator[None]:
    """Put the model into evaluation mode inside, with the same random numbers each time."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with drawing(seed, 0, 0, 0):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def takes(place: str, rule: bool = True) -> tuple[set[str], set[str]]:
    """Give the names that the factory takes of those on offer, and those of them that it demands.

    Raises `UserError` when it takes no loops, when no rule can reach it (`rule`), or when it needs something else.
    """
    factory, _ = load_place(place)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        raise UserError(f"{place} does not say which arguments it takes: write it as a function") from None
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    demanded = [p.name for p in by_name if p.default is p.empty]
    unnamed = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if unnamed:
        raise UserError(f"{place} takes {unnamed[0]!r} by position alone: let it be given by name")
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    wanted = set(OFFERED.split(", ")) if everything else {p.name for p in by_name}
    return heard(place, wanted, demanded, rule), set(demanded)


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Give the scalar that the model returns, or the cross-entropy of its logits [..., V] with the batch's targets [...].

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


def logits_of(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """Give the logits [B, T, V] of tokens [B, T]: the output, its `logits` attribute, or the first of several outputs.

    Raises `UserError` when the model fails on tokens alone, or gives something else.
    """
    with foreign(f"the model failed on tokens {list(tokens_BT.shape)} alone"):
        output = model(tokens_BT)
    first = output[0] if isinstance(output, (tuple, list)) else output
    logits = getattr(output, "logits", first)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != tokens_BT.shape:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the model gave {shape} for tokens {list(tokens_BT.shape)}: it must give logits [B, T, V]")
    return logits


def scalar(loss: Any) -> Tensor:
    """Give the loss as it is; raises `UserError` unless it is a tensor without axes."""
    if not isinstance(loss, Tensor) or loss.ndim:
        kind = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"loss(model, batch) gave {kind}: it must return a tensor without axes")
    return loss


def _required(model: nn.Module) -> int:
    """Count the arguments that `forward` cannot do without."""
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _offer(config: TrainConfig, vocab_size: int | None) -> dict[str, Any]:
    size = config.model
    rule = get_rule(size.rule)
    return {
        **{name: getattr(size, name) for name in ("loops", "layers", "width", "rule", "strength")},
        **{name: getattr(size, name) for name in ("base_layers", "base_width")},
        "vocab_size": size.vocab_size or vocab_size or 256,
        "context": config.data.context,
        "seed": config.train.seed,
        "residual_scale": rule.residual_scale(size.depth, size.strength, size.base_layers).value,
        "output_multiplier": rule.output_multiplier(size.width_ratio).value,
    }
