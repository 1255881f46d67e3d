"""Question: does the best learning rate of other people's models stand still over loops with `looped`?

python benchmarks/own_transfer.py FOLDER [--out records/own_transfer.json]   needs: 'loopscale[examples,hf]'

Runs the studies of `STUDIES` by `loopscale transfer --model`, each in a folder below FOLDER, and keeps what each verdict
rests on. Stop it anywhere and start it again; a study that ended is only read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from loopscale.files import write_json
from loopscale.train import provenance
from loopscale.transfer import Study, summarise

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "examples" / "blocks"
SIZE = ["model.layers=1", "model.base_layers=1", "model.width=32", "train.steps=100", "train.eval_batches=12"]
VIT = ["--model", "vit_study.py:make_model", "--set", "data.batch_size=32"]
LLAMA = ["--model", "llama_study.py:make_model", "--set", "data.batch_size=16", "--set", "data.context=32"]
LOOPS = ["--loops", "1,2,4,8,16"]
# folder: title, what, arguments
STUDIES: dict[str, tuple[str, str, list[str]]] = {
    "vit_adamw": (
        "A looped vision Transformer on digits, AdamW",
        "`examples/blocks/vit_study.py`: Loop and ScaledResidual; d = 32, L = 1, 100 steps of 32 images",
        [*VIT, *LOOPS],
    ),
    "vit_half": (
        "The same at strength 0.5, run after the first had been seen",
        "as the first, lambda = 0.5",
        [*VIT, *LOOPS, "--rules", "looped", "--strengths", "0.5"],
    ),
    "llama_adamw": (
        "Llama layers of transformers, scaled by attach, AdamW",
        "`examples/blocks/llama_study.py`; d = 32, L = 1, 100 steps of 16 x 32 bytes",
        [*LLAMA, *LOOPS, "--rules", "looped,none"],
    ),
    "vit_half_6": (
        "The vision Transformer at strength 0.5 with six seeds, run after two had left it undecided",
        "as before; N = 1, 4, 16",
        [*VIT, "--loops", "1,4,16", "--rules", "looped", "--strengths", "0.5", "--seeds", "6"],
    ),
    "llama_adamw_6": (
        "The Llama layers with six seeds, run after two had left it undecided",
        "as before; N = 1, 4, 16",
        [*LLAMA, "--loops", "1,4,16", "--rules", "looped", "--seeds", "6"],
    ),
    "vit_muon": (
        "The looped vision Transformer with Muon on its matrices",
        "as the first, optimizer Muon",
        [*VIT, "--rules", "looped,none", "--loops", "1,4,16", "--set", "optim.optimizer=muon"],
    ),
}


def run(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """The result of a study, run or continued where it is not there."""
    if not (folder / "result.json").exists():
        sets = [word for value in SIZE for word in ("--set", value)]
        command = [
            sys.executable,
            "-m",
            "loopscale",
            "transfer",
            "--seeds",
            "2",
            *arguments,  # a study's own --seeds comes later and counts
            *sets,
            "--out",
            str(folder),
        ]
        subprocess.run(command, cwd=MODELS, check=False)
    kept: dict[str, Any] = json.loads((folder / "result.json").read_text())
    # The verdict is that of the code as it is now, over the trials as they ran.
    return {**kept, **{key: value for key, value in summarise(Study.load(folder), kept["provenance"]).items()}}


def kept(result: dict[str, Any]) -> dict[str, Any]:
    wanted = (
        "verdict",
        "sentence",
        "strength",
        "slope",
        "slope_interval",
        "regret",
        "regret_interval",
        "optima",
        "points",
    )
    return {name: {key: rule.get(key) for key in wanted} for name, rule in result["rules"].items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", nargs="*", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--out", type=Path, default=ROOT / "records" / "own_transfer.json")
    args = parser.parse_args()
    studies = []
    for name in args.studies:
        title, what, arguments = STUDIES[name]
        result = run(args.folder / name, arguments)
        found = {"title": title, "what": what, "loops": result["loops"], "rules": kept(result)}
        studies.append({**found, "provenance": result["provenance"]})
        print(*(rule["sentence"] for rule in result["rules"].values()), sep="\n", flush=True)
    claim = "where the best learning rate of other people's models goes over loops: the verdicts say"
    write_json(args.out, {"claim": claim, "studies": studies, "provenance": provenance()})
