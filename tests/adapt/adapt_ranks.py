"""One of two ranks: a model after attach or convert, under DDP and under FSDP2, against the same model on one process."""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from adapt_models import llama, tokens
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from loopscale import attach, attachment, convert

BATCH = tokens(batch=4)


def adapted(how: str):
    """A Llama after attach, or with a core."""
    model = llama(3).train()
    if how == "attach":
        attach(model, loops=4)
    else:
        convert(model, 1, 3, loops=3, strength=0.8, steps="damped" if how == "damped" else "even")
    return model


def loss_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """A smooth function of the logits, averaged over the batch."""
    return model(batch, use_cache=False).logits.square().mean()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole gradients by name, those of DDP's wrapper without its prefix."""
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        found[name.removeprefix("module.")] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    return found


def check(how: str, rank: int, kind: str) -> None:
    """The sharded model's loss and gradients are those of one process on the whole batch, at two values of N."""
    alone = adapted(how)
    model = copy.deepcopy(alone)
    handle = attachment(model)
    if kind == "ddp":
        running = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        running = fully_shard(model, mesh=mesh)
    for loops in (3, 5):
        attachment(alone).set_loops(loops)
        handle.set_loops(loops)
        for one in (alone, running):
            one.zero_grad()
        whole = loss_of(alone, BATCH)
        whole.backward()
        share = loss_of(running, BATCH.chunk(2)[rank])
        share.backward()
        both = share.detach().clone()
        dist.all_reduce(both)
        torch.testing.assert_close(both / 2, whole.detach())
        torch.testing.assert_close(gradients(running), gradients(alone), atol=1e-5, rtol=1e-4)
    if how == "attach":
        handle.detach()
        alone_again = llama(3).train()
        torch.testing.assert_close(loss_of(running, BATCH), loss_of(alone_again, BATCH))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    place = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=place, world_size=2)
    for way in ("attach", "damped", "even"):
        for parallel in ("ddp", "fsdp"):
            check(way, place, parallel)
            print(way, parallel, "equal", flush=True)
    dist.destroy_process_group()
