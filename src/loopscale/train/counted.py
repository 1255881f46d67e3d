"""Count what a user model takes, on the model itself: parameters, FLOPs and what the backward pass keeps, by a few rows.

The model is built of fake tensors, for which nothing is allocated, so that any size can be asked for. Where it cannot be
(it reads values while it is built or run), it is built in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from loopscale.errors import foreign
from loopscale.planning import Counted
from loopscale.train.config import TrainConfig
from loopscale.train.needs import default_vocabulary, shared
from loopscale.train.task import length, to_device
from loopscale.train.user import UserModel, makes_batches, scalar, user_model

ROWS = 2


def counted(config: TrainConfig) -> Counted:
    """Count a training of the config's user model, without data; raises `UserError` for what its code does wrong."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _counted(config)
    except Exception:
        return _counted(config)  # raises again what is not about fake tensors


def _counted(config: TrainConfig) -> Counted:
    place = str(config.model.factory)
    bf16 = config.train.precision == "bf16"
    vocab_size = default_vocabulary(config)
    user = user_model(place, config, vocab_size=vocab_size)
    items = makes_batches(place)
    batch = user.batch(batch_size=ROWS) if items else _tokens(config, vocab_size)
    batch = to_device(batch, torch.device("cpu"))
    rows = length(batch) or 1
    with foreign("the model failed on its first batch"):
        # the kernel whose products are counted
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss = scalar(user.loss(user.model, batch))
            forward = counter.get_total_flops()
            loss.backward()  # type: ignore[no-untyped-call]
        kept = _kept(user, batch, bf16=bf16)
    total = sum(p.numel() for p in user.model.parameters())
    frozen = sum(p.numel() for p in user.model.parameters() if not p.requires_grad)
    return Counted(
        counts={**({"frozen": frozen} if frozen else {}), "total": total},
        row_flops=counter.get_total_flops() / rows,
        forward_flops=forward / rows,
        kept_bytes=sum(kept) / rows,
        widest_bytes=max(kept, default=0) / rows,
        **{**shared(config), "context": None if items else config.data.context},
    )


def _tokens(config: TrainConfig, vocab_size: int) -> Any:
    """Give some rows; which tokens they hold decides nothing."""
    size = min(vocab_size, config.model.vocab_size or vocab_size)
    tokens_BT = torch.arange(ROWS * (config.data.context + 1)).reshape(ROWS, -1) % size
    return tokens_BT[:, :-1], tokens_BT[:, 1:]


def _kept(user: UserModel, batch: Any, *, bf16: bool) -> list[int]:
    """Return the bytes of each storage that the forward pass keeps for the backward pass, weights aside."""
    held: dict[int, int] = {}
    alive: list[Tensor] = []  # an address is one tensor's only while that lives
    weights = {p.untyped_storage()._cdata for p in user.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            held[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        scalar(user.loss(user.model, batch))
    return list(held.values())
