"""What a newcomer built from the documentation alone holds: roles, scale, flatness, a step at another number of loops."""

import torch
from newcomer_gpt import GPT

import loopscale as ls


def test_the_newcomers_model_is_right():
    torch.manual_seed(0)
    model, idx = GPT(), torch.randint(0, 65, (2, 16))
    optimizer = torch.optim.AdamW(ls.param_groups(model, lr=2**-7))
    sizes = {group["name"]: len(group["params"]) for group in optimizer.param_groups}
    assert sizes == {"embedding": 2, "hidden": 12, "gain": 24, "outer_gain": 2}  # the readout is tied to the embedding
    assert model.transformer.h.residual_scale(12) == 1 / (12 * 3**0.5)
    assert ls.check_parameterization(model, batch=idx, loops=(1, 4), steps=1).passed
    loss = model(idx, idx, loops=12)[1]
    loss.backward()
    optimizer.step()
    assert model(idx, idx, loops=12)[1] < loss
