"""One training on many devices: replicas (DDP) or shards (FSDP2), the loop as the unit.

The module that owns the loop is the unit that is gathered: once a step, whatever N, and its gradient is reduced once.
Wrapping each block instead would gather it at every visit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from loopscale.errors import UserError, expect
from loopscale.nn import Loop, LoopedCore
from loopscale.speaker import speakers
from loopscale.train.config import TrainConfig
from loopscale.train.needs import check_memory
from loopscale.train.sharded import is_spread
from loopscale.train.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Sync = Callable[[bool], AbstractContextManager[object]]


def shard_looped(model: nn.Module, mesh: DeviceMesh, *, param_dtype: torch.dtype | None = None) -> nn.Module:
    """Shard a looped model in place with `fully_shard`: each outermost loop is one unit, and what is left another.

    A loop is a `LoopedCore`, a `Loop`, or any module for which `owns_loop` (an attribute) is true. Its parameters are
    gathered once a step and stay until the backward pass is over (the loop is in use nearly all of that time), and its
    gradient is reduced once, in fp32. `param_dtype=torch.bfloat16` gathers the loop in bf16; embedding, readout and norms
    outside stay fp32, and so does the stream: use it under autocast. Build the optimiser afterwards: the parameters are
    other objects then. `visit_rms` of the house model works on the sharded model too.

    Raises `UserError` when the model has no loop, or is not given a mesh.

    >>> from loopscale.nn import LoopedTransformer, ModelConfig
    >>> shard_looped(nn.Linear(2, 2), None)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    loopscale.errors.UserError: Linear has no loop to shard: ...

    Source: pytorch.org/docs/stable/distributed.fsdp.fully_shard.html; counted in tests/train/test_train_parallel.py.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    expect(model, isinstance(model, nn.Module), "a torch.nn.Module", "shard_looped(model, mesh)")
    units = list(_loops(model))
    if not units and not speakers(model):  # after `attach` the whole model is one unit
        raise UserError(
            f"{type(model).__name__} has no loop to shard: put the shared layers in a Loop, or set owns_loop = True on "
            "the module whose forward applies them again and again"
        )
    made = 'such as init_device_mesh("cuda", (8,)), in each process that torchrun starts'
    expect(mesh, isinstance(mesh, DeviceMesh), "a DeviceMesh", made)
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in units:
        if unit is not model:
            fully_shard(unit, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    if hasattr(model, "visit_rms"):
        register_fsdp_forward_method(model, "visit_rms")
    return model


def _loops(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, (LoopedCore, Loop)) or getattr(module, "owns_loop", False):
        yield module
        return
    for child in module.children():
        yield from _loops(child)


def check_share(config: TrainConfig, world: World) -> None:
    """Raise `UserError` unless the batch can be dealt out evenly, the strategy fits, and the memory here suffices."""
    batch, accumulate = config.data.batch_size, config.train.accumulate
    if batch % (world.size * accumulate):
        parts = f"{world.size} ranks" + (f" x {accumulate} accumulated parts" if accumulate > 1 else "")
        raise UserError(
            f"data.batch_size = {batch} cannot be dealt out to {parts}: "
            f"use a multiple of {world.size * accumulate}, or another number of ranks"
        )
    if config.train.strategy == "fsdp" and world.size > 1 and config.optim.optimizer == "muon":
        raise UserError("Muon needs whole matrices: use train.strategy = 'ddp', or optim.optimizer = 'adamw'")
    if config.model.factory is None:  # the arithmetic is that of the house model
        check_memory(config, world.size)


def parallelize(model: nn.Module, config: TrainConfig, world: World, device: torch.device) -> tuple[Any, Sync]:
    """Give what each rank calls, and the context of a backward pass: the last (True) sums the gradients."""
    if world.size == 1:
        return model, lambda last: nullcontext()
    if config.train.strategy == "ddp":
        where = [device] if device.type == "cuda" else None
        # A user model may leave parameters out of a step.
        replica = DistributedDataParallel(
            model, device_ids=where, find_unused_parameters=config.model.factory is not None
        )
        return replica, lambda last: nullcontext() if last else replica.no_sync()
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (world.size,))
    dtype = torch.bfloat16 if config.train.precision == "bf16" else None
    sharded = shard_looped(model, mesh, param_dtype=dtype)
    return sharded, lambda last: _gathered(sharded, last)


@contextmanager
def _gathered(model: Any, last: bool) -> Iterator[None]:
    """Reduce gradients and let go of the gathered parameters only after the last backward pass of a step."""
    model.set_requires_gradient_sync(last)
    model.set_reshard_after_backward(last)
    yield


def let_go(model: nn.Module) -> None:
    """Forget parameters that were gathered for a forward pass without a backward pass: they would be stale after a step."""
    made = sys.modules.get("torch.distributed.fsdp")  # without it nothing is sharded
    if made is None:
        return
    for module in model.modules():
        if isinstance(module, made.FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that every rank has in full: a DTensor is put together, another one is as it is."""
    return tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
