"""Sample text from a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from loopscale.data import Tokenizer, tokenizer_from_json
from loopscale.errors import UserError
from loopscale.nn import LoopedTransformer
from loopscale.train import checkpoint
from loopscale.train.run import Run, Warn, open_run


def generate(
    run_dir: str | Path,
    prompt: str,
    tokens: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
    loops: int | None = None,
    *,
    warn: Warn = lambda sentence: None,
) -> str:
    """Continue `prompt` by `tokens` tokens from the run's newest whole checkpoint; the same seed gives the same text.

    temperature: 0 takes the likeliest token. loops: how often the core is applied; by default as in training. The model
    sees the last `data.context` tokens, as in training.

    Raises `UserError` for values out of range, a folder that is no run, or a run without a checkpoint or text.
    """
    if tokens < 1:
        raise UserError(f"tokens must be at least 1, not {tokens}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature must be 0 (the likeliest token) or a positive number, not {temperature}")
    run = open_run(Path(run_dir))
    newest = run.newest_whole(warn)
    if newest is None:
        raise UserError(f"{run.path} has no checkpoint to sample from: run loopscale train --resume {run.path}")
    tokenizer = _tokenizer(run)
    model = LoopedTransformer(run.config.network(tokenizer.vocab_size))
    checkpoint.load_weights(newest, model)
    start = [int(token) for token in tokenizer.encode(prompt)]
    if not start:
        raise UserError("the prompt is empty: give at least one character to continue")
    generator = torch.Generator().manual_seed(seed)
    pick = partial(_pick, temperature=temperature, generator=generator)
    return prompt + tokenizer.decode(_sampled(model, start, tokens, pick, loops, run.config.data.context))


@torch.inference_mode()
def _sampled(
    model: LoopedTransformer,
    start: list[int],
    count: int,
    pick: Callable[[Tensor], int],
    loops: int | None,
    context: int,
) -> list[int]:
    ids = list(start)
    for _ in range(count):
        ids.append(pick(model(torch.tensor([ids[-context:]]), loops=loops)[0, -1].float()))
    return ids[len(start) :]


def _pick(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial(torch.softmax(logits_V / temperature, dim=-1), 1, generator=generator))


def _tokenizer(run: Run) -> Tokenizer:
    """Read the run's own tokenizer: sampling needs no data."""
    try:
        return tokenizer_from_json((run.path / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{run.path / 'tokenizer.json'} is missing or unreadable: restore it, or train again") from None
