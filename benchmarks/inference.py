"""Claim: a looped model, its loops chosen per call, runs inference as fast as the same network unrolled into own layers.

python benchmarks/inference.py [--out records/inference.json]     needs: pip install 'loopscale[hf]'

Three pairs with equal logits: the house model against an unrolled house model, scaled and folded; a Llama after convert and
fold against a Llama of N * L layers, generating with a cache. Runs alternate, A B A B ...; the ratio is taken pair by pair.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopscale import LoopedTransformer, ModelConfig, convert, fold
from loopscale.files import write_json
from loopscale.train import provenance

LOOPS, LAYERS, NEW = 8, 2, 24


def unrolled(looped: LoopedTransformer, loops: int) -> LoopedTransformer:
    """A network of N * L layers, each with weights of its own, eps in its output projections, visited once."""
    twin = copy.deepcopy(looped)
    fold(twin, loops=loops)
    config = replace(twin.config, layers=loops * LAYERS, loops=1)
    other = LoopedTransformer(config)
    state = {name: value for name, value in twin.state_dict().items() if not name.startswith("core.")}
    for visit in range(loops):
        for name, value in twin.core.state_dict().items():
            layer, _, rest = name.partition(".")
            state[f"core.{visit * LAYERS + int(layer)}.{rest}"] = value
    other.load_state_dict(state)
    return other


def llamas(loops: int) -> tuple[Any, Any]:
    """A Llama of L layers looped and folded, and one of N * L layers with copies of the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(layers: int) -> Any:
        size = dict(
            vocab_size=256, hidden_size=256, intermediate_size=688, num_attention_heads=8, num_key_value_heads=8
        )
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, attn_implementation="sdpa", **size)).eval()

    looped, plain = make(LAYERS), make(loops * LAYERS)
    convert(looped, 0, LAYERS, loops=loops, steps="even", strength=1.0)
    fold(looped)
    with torch.no_grad():
        for place, layer in enumerate(plain.model.layers):
            layer.load_state_dict(looped.model.layers[place % LAYERS].state_dict())
        for part in ("embed_tokens", "norm"):
            getattr(plain.model, part).load_state_dict(getattr(looped.model, part).state_dict())
        plain.lm_head.load_state_dict(looped.lm_head.state_dict())
    return looped, plain


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], tokens: int, pairs: int) -> dict[str, Any]:
    """Tokens a second of both and their ratio, pair by pair."""
    for run in (ours, theirs, ours, theirs):
        run()
    seconds = [(timed(ours), timed(theirs)) for _ in range(pairs)]
    ratios = sorted(b / a for a, b in seconds)
    speeds = [tokens / statistics.median(side) for side in zip(*seconds, strict=True)]
    row = {"what": name, "ratio_median": round(statistics.median(ratios), 3), "pairs": pairs}
    row |= {"ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)]}
    row |= {"tokens_per_second": [round(speed, 1) for speed in speeds]}
    print(row, flush=True)
    return row


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import transformers

    draw = torch.Generator().manual_seed(0)
    batch: Tensor = torch.randint(0, 256, (2, 256), generator=draw)
    house = LoopedTransformer(ModelConfig(vocab_size=256, width=256, layers=LAYERS, loops=2, head_dim=32)).eval()
    plain = unrolled(house, LOOPS).eval()
    torch.testing.assert_close(house(batch, loops=LOOPS), plain(batch), atol=2e-4, rtol=1e-3)
    folded = copy.deepcopy(house)
    fold(folded, loops=LOOPS)
    torch.testing.assert_close(folded(batch), plain(batch), atol=2e-4, rtol=1e-3)
    looped, llama = llamas(LOOPS)
    settings = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, use_cache=True)
    prompt = batch[:, :64]
    assert torch.equal(looped.generate(prompt, **settings), llama.generate(prompt, **settings))
    rows = [
        compare("forward, N per call", lambda: house(batch, loops=LOOPS), lambda: plain(batch), 512, options.pairs),
        compare("forward, folded", lambda: folded(batch), lambda: plain(batch), 512, options.pairs),
        compare(
            "Llama generating with a cache, folded",
            lambda: looped.generate(prompt, **settings),
            lambda: llama.generate(prompt, **settings),
            2 * NEW,
            options.pairs,
        ),
    ]
    sizes = [sum(p.numel() for p in model.parameters()) for model in (looped, llama)]
    record = {
        "claim": "tokens per second of a looped model / the same network unrolled",
        "shape": {"width": 256, "layers": LAYERS, "loops": LOOPS, "context": 256, "batch": 2, "new_tokens": NEW},
        "parameters": {"looped": sizes[0], "unrolled": sizes[1]},
        "rows": rows,
        "provenance": {**provenance(), "transformers": transformers.__version__},
    }
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
