"""Measure the known looped models of docs/reference/known-models.md: tiny, at random weights, one diagnosis each.

python benchmarks/known_models.py [NAME ...] [--out records/known_models.json]   needs: transformers, x-transformers

`transformers` and `x-transformers` are the vendors' own code from tiny configs. The others are our own code, those of
the tests; what could not be built is not in the record.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loopscale as ls
from loopscale.train import provenance

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "diagnosis"))
VENDOR, OWN, SOURCE = "the vendor's, tiny config", "our own", "our own, after its source"


class NanoBlock(nn.Module):
    """looped_nanochat's block: a norm before and after each branch, the second one over the sum."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norms, self.heads = nn.ModuleList(nn.RMSNorm(width) for _ in range(4)), heads
        self.c_q, self.c_k, self.c_v, self.c_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.c_fc, self.c_out = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then relu^2."""
        first, second, third, fourth = self.norms
        y = first(x)
        q, k, v = (part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.c_q, self.c_k, self.c_v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = second(x + self.c_proj(mixed))
        return fourth(x + self.c_out(F.relu(self.c_fc(third(x))).square()))


class LoopedNanochat(nn.Module):
    """Prelude, core, coda; `inject` reads (embedding, state) and starts as (identity, zero): the state is read later.

    `trained` stands for later: its second half is drawn, and so are the output projections, which start at zero.
    """

    def __init__(self, trained: bool, num_recur: int = 4, width: int = 48) -> None:
        super().__init__()
        self.wte, self.inject = nn.Embedding(64, width), nn.Linear(2 * width, width, bias=False)
        self.prelude, self.coda = NanoBlock(width), NanoBlock(width)
        self.recur = nn.ModuleList(NanoBlock(width) for _ in range(2))
        self.norm_recur, self.lm_head, self.num_recur = nn.RMSNorm(width), nn.Linear(width, 64, bias=False), num_recur
        with torch.no_grad():
            if not trained:
                self.inject.weight.copy_(torch.cat([torch.eye(width), torch.zeros(width, width)], 1))
                for block in (self.prelude, *self.recur, self.coda):
                    block.c_proj.weight.zero_()
                    block.c_out.weight.zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        """The state starts as the prelude's result."""
        e = s = self.prelude(F.rms_norm(self.wte(tokens), self.wte.weight.shape[1:]))
        for _ in range(self.num_recur):
            u = self.inject(torch.cat([e, s], -1))
            for block in self.recur:
                u = block(u)
            s = self.norm_recur(u)
        return self.lm_head(self.coda(s))


class MobileLLM(nn.Module):
    """Immediate block-wise sharing: each of transformers' Llama layers acts twice in a row."""

    def __init__(self, layers: int = 2, repeats: int = 2) -> None:
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        config = LlamaConfig(
            hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=layers
        )
        self.embed, self.rotary, self.repeats = nn.Embedding(61, 32), LlamaRotaryEmbedding(config), repeats
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Layer by layer, each `repeats` times."""
        x = self.embed(tokens)
        place = self.rotary(x, torch.arange(tokens.shape[1])[None])
        for layer in self.layers:
            for _ in range(self.repeats):
                y = layer(x, position_embeddings=place)
                x = y[0] if isinstance(y, tuple) else y
        return x @ self.embed.weight.T


def zamba2() -> nn.Module:
    """One attention block shared by four hybrid layers, with an adapter each, between Mamba 2 layers."""
    from transformers import Zamba2Config, Zamba2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    state = {"mamba_d_state": 8, "n_mamba_heads": 2, "chunk_size": 8, "adapter_rank": 4, "num_mem_blocks": 1}
    kinds = ["mamba", "hybrid"] * 4
    return Zamba2ForCausalLM(
        Zamba2Config(vocab_size=61, num_hidden_layers=8, layers_block_type=kinds, **sizes, **state)
    )


def inkling() -> nn.Module:
    """Two looped layers of six, three passes."""
    from transformers.models.inkling2_loop.configuration_inkling2_loop import Inkling2LoopTextConfig
    from transformers.models.inkling2_loop.modeling_inkling2_loop import Inkling2LoopForCausalLM

    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    more = {**heads, **{f"swa_{name}": size for name, size in heads.items()}, "d_rel": 4, "moe_intermediate_size": 32}
    more |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_layers_per_attn_res_block": 2, "loop_gate_rank": 8}
    more |= {"loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 3, "eos_token_id": 1}
    config = Inkling2LoopTextConfig(
        vocab_size=64, unpadded_vocab_size=61, hidden_size=32, num_hidden_layers=6, max_position_embeddings=128, **more
    )
    return Inkling2LoopForCausalLM(config)


def models() -> dict[str, tuple[str, Callable[[], Any]]]:
    """Every model: whose code it is, and how it is built; the names are those of the page."""
    import looped_states as states
    import looped_styles as styles
    import third_party as third
    from cases.hyper_streams import make_model as hyperloop
    from cases.universal_signals import make_model as signals

    return {
        "Universal Transformer": (OWN, styles.ut_post),
        "Universal Transformer, pre-norm": (OWN, signals),
        "ALBERT": (VENDOR, third.albert),
        "Huginn / recurrent-pretraining": (OWN, styles.huginn),
        "Ouro": (OWN, styles.ouro),
        "Parcae": (OWN, styles.parcae),
        "LoopFormer": (OWN, states.loopformer),
        "looped_nanochat": (SOURCE, lambda: LoopedNanochat(True)),
        "looped_nanochat, at its initialisation": (SOURCE, lambda: LoopedNanochat(False)),
        "Looped-GPT": (OWN, styles.nano_nested),
        "x-transformers, looped": (VENDOR, third.x_looped),
        "x-transformers, tied layers": (VENDOR, third.x_tied),
        "Hyperloop": (OWN, hyperloop),
        "HRM": (VENDOR, third.hrm_text),
        "TRM": (OWN, styles.trm),
        "MobileLLM": (OWN, MobileLLM),
        "Zamba2": (VENDOR, zamba2),
        "Inkling 2 loop": (VENDOR, inkling),
        "DeepLoop": (OWN, states.post_deeploop),
        "DEQ": (OWN, styles.deq),
    }


def measured(code: str, build: Callable[[], Any]) -> dict[str, Any]:
    """One diagnosis as the page shows it; tokens below 61 for what reads tokens."""
    torch.manual_seed(0)
    started = time.process_time()
    made = build()
    found = ls.diagnose(*made) if isinstance(made, tuple) else ls.diagnose(made)
    return {
        "code": code,
        "loops": found.loops,
        "layers": found.layers,
        "law": found.growth,
        "gain": found.gain if found.gain is not None and math.isfinite(found.gain) else None,
        "law_over_loops": found.growth_over_loops,
        "scale": found.effective_scale,
        "radius": found.spectral_radius,
        "kappa": found.kappa,
        "codes": sorted(found.codes),
        "verdict": found.verdict.partition(" (")[0],
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def main() -> None:
    """Measure all, or those named; the others keep their rows."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("names", nargs="*")
    asked.add_argument("--out", type=Path, default=ROOT / "records" / "known_models.json")
    given = asked.parse_args()
    known = json.loads(given.out.read_text())["models"] if given.out.exists() else {}
    rows = {}
    for name, (code, build) in models().items():
        if name in known and given.names and name not in given.names:
            rows[name] = known[name]
            continue
        rows[name] = measured(code, build)
        print(f"{name}: {rows[name]['verdict']}, gain {rows[name]['gain']}", flush=True)
    given.out.write_text(json.dumps({"provenance": provenance(), "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
