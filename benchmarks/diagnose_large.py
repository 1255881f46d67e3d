"""Claim: a 150M-parameter looped model at N = 16 is diagnosed on a CPU within a minute and twice the memory of its forward.

python benchmarks/diagnose_large.py [--out records/diagnose_large.json]

Each side runs in a process of its own and reports its peak resident memory, Python, torch and weights included: the model
with one forward pass, and the model with a whole diagnosis. Without gradients the forward pass keeps one layer's values
at a time, which makes it as small as it gets.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

LOOPS, WIDTH, LAYERS, VOCABULARY = 16, 1024, 8, 50257


class Large(nn.Module):
    """Eight of torch's own pre-norm layers, looped without any scale, between a tied embedding and readout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 16, 4 * WIDTH, norm_first=True, batch_first=True) for _ in range(LAYERS)
        )
        self.loops = LOOPS

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens_BT)
        for _ in range(self.loops):
            for layer in self.layers:
                x_BTD = layer(x_BTD)
        return nn.functional.linear(x_BTD, self.embedding.weight)


def side(kind: str) -> dict[str, object]:
    """Run one side here; give its seconds and the peak memory of this process in MB."""
    from loopscale.diagnosis import diagnose

    torch.manual_seed(0)
    model = Large().eval()
    tokens = torch.randint(0, VOCABULARY, (1, 16), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    said: dict[str, object] = {}
    if kind == "forward":
        with torch.no_grad():
            model(tokens)
    else:
        found = diagnose(model)
        said = {
            "loops": found.loops,
            "layers": found.layers,
            "growth": found.growth,
            "gain": round(found.gain or 0, 2),
            "kappa": round(found.kappa or 0, 2),
            "codes": sorted(found.codes),
        }
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parameters = sum(p.numel() for p in model.parameters())
    return {"seconds": round(seconds, 1), "peak_mb": round(peak), "parameters": parameters, **said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=("forward", "diagnose"))
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.side)))
        return
    found = {}
    for kind in ("forward", "diagnose"):
        done = subprocess.run([sys.executable, __file__, "--side", kind], capture_output=True, text=True, check=True)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    ratio = found["diagnose"]["peak_mb"] / found["forward"]["peak_mb"]
    print(f"{found['diagnose']['seconds']} s, {ratio:.2f} x the memory of a forward pass: {found}")
    if options.out:
        from loopscale.files import write_json
        from loopscale.train import provenance

        record = {
            "claim": "a 150M-parameter model at N = 16 is diagnosed in under 60 s and under 2 x the memory of its forward",
            "memory": "peak resident memory of a process: a whole diagnosis over one forward pass without gradients",
            "shape": {"width": WIDTH, "layers": LAYERS, "loops": LOOPS, "vocabulary": VOCABULARY, "batch": [1, 16]},
            "memory_ratio": round(ratio, 3),
            "seconds_over_forward": round(found["diagnose"]["seconds"] / found["forward"]["seconds"], 1),
            "load_of_the_machine": [round(value, 1) for value in os.getloadavg()],
            **found,
            "provenance": provenance(),
        }
        write_json(options.out, record)


if __name__ == "__main__":
    main()
