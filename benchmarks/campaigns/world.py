"""The small things that campaigns work on, and what is compared of a folder: all train in a second."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

from loopscale.data import Preparation, prepare_data
from loopscale.train import make_config, train_run

SMALL = [
    *("--set", "model.width=16", "--set", "model.head_dim=8", "--set", "data.context=8", "--set", "data.batch_size=2"),
    *("--set", "train.steps=3", "--set", "train.eval_batches=1"),
]
STUDY = [
    "--preset",
    "demo",
    *SMALL,
    "--loops",
    "1,2",
    "--seeds",
    "2",
    "--rules",
    "looped,none",
    "--lrs",
    "2^-8,2^-7,2^-6",
]
TUNING = ["--target", "loops=8", "--trials", "6", "--seeds", "2"]
EXPONENT = [
    *SMALL,
    *("--outer-rate", "0.05", "--seeds", "1", "--fresh", "1", "--carry", "looped,sqrt", "--loops", "1,2"),
]
MODEL = """
import torch
import loopscale as ls

def make_model(loops, layers, width, vocab_size, rule, strength, base_layers):
    blocks = [ls.ScaledResidual(torch.nn.Linear(width, width), torch.nn.LayerNorm(width)) for _ in range(layers)]
    loop = ls.Loop(torch.nn.Sequential(*blocks), loops, rule=rule, strength=strength, base_layers=base_layers)
    return torch.nn.Sequential(torch.nn.Embedding(vocab_size, width), loop, torch.nn.Linear(width, vocab_size))
"""


def make_world(folder: Path) -> Path:
    """Write texts, configs, a user's model, a run, prepared shards into `folder`."""
    draw = random.Random(0)
    words = ["loop", "visit", "stream", "branch", "layer", "rate", "norm", "scale"]
    (folder / "texts").mkdir(parents=True)
    for number in range(20):
        text = " ".join(draw.choice(words) for _ in range(400))
        (folder / f"texts/{number:02d}.txt").write_text(text + "\n")
    (folder / "mine.py").write_text(MODEL)
    prepare_data(str(folder / "texts"), folder / "tokens", Preparation(shard_tokens=9000, validation_fraction=0.2))
    write_config(folder / "random.toml", data={"path": str(folder / "texts")})
    write_config(folder / "epochs.toml", data={"path": str(folder / "tokens"), "order": "epochs"})
    write_config(folder / "stream.toml", data={"path": f"stream:{folder / 'texts'}"})
    short = {"steps": 4, "checkpoint_every": 2, "eval_every": 2}
    config = write_config(folder / "short.toml", data={"path": str(folder / "texts")}, train=short)
    train_run(config, folder / "run")
    return folder


def write_config(path: Path, **sections: dict[str, Any]) -> Any:
    """Write a config that trains for a second, with a checkpoint every few steps."""
    values = {
        "model": {"width": 16, "head_dim": 8, "layers": 1, "loops": 2},
        "data": {"context": 16, "batch_size": 4, "validation_fraction": 0.2},
        "train": {"steps": 16, "checkpoint_every": 2, "eval_every": 5, "eval_batches": 1, "device": "cpu"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    config = make_config(values)
    path.write_text(config.to_toml())
    return config


MADE_WITH = {"provenance", "seconds", "tokens_per_second", "rows_per_second", "seal", "date", "commit", "trial_seconds"}


def kept(value: Any) -> Any:
    """A record without what differs between two runs of the same: times and their seals."""
    if isinstance(value, dict):
        return {key: kept(inner) for key, inner in value.items() if key not in MADE_WITH}
    if isinstance(value, str):
        return re.sub(r"[\d.,]+ (s|seconds?|minutes?)\b|[\d.]+ ?% of the (trials' )?time", "", value)
    return [kept(inner) for inner in value] if isinstance(value, list) else value


def facts(place: Path) -> dict[str, Any]:
    """What is under a place, file by file, in the words of its records: equal when the work was the same."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in place.rglob("*") if not path.is_dir()):
        name = str(path.relative_to(place))
        if path.name in (".lock", "study.lock"):
            continue
        if path.name == "provenance.json" or path.suffix in (".html", ".svg", ".png", ".pdf"):
            found[name] = "there"
        elif path.suffix == ".jsonl":
            lines = [kept(json.loads(line)) for line in path.read_text().splitlines()]
            found[name] = {line["key"]: line for line in lines} if lines and "key" in lines[0] else lines
            if len(found[name]) != len(lines):
                found[name] = "a line stands twice"
        elif path.suffix == ".json":
            found[name] = kept(json.loads(path.read_text()))
        elif path.suffix in (".toml", ".md"):
            found[name] = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.+Z]*|[\d.]+ s\b", "", path.read_text())
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Where they differ: the files, and the fields of their records."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted({*one, *other}, key=str)
        missing = object()
        return [
            said
            for name in names
            for said in differing(one.get(name, missing), other.get(name, missing), f"{place}:{name}".strip(":"))
        ]
    return [] if one == other else [place]
