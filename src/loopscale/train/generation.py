"""Sample text from a run, with keys and values kept between tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopscale.errors import UserError, between, nearest, settings
from loopscale.nn import KeyValueCache, Past, last_visit, per_visit
from loopscale.nn.past import Sharing
from loopscale.train.load_model import load_model
from loopscale.train.run import Warn
from loopscale.train.user import logits_of

MOST_TOKENS, MOST_LOOPS = 10**6, 10**6  # what is asked for comes to an end

CACHES: dict[str, Sharing | None] = {"per-visit": per_visit, "last-visit": last_visit, "none": None}


@dataclass(frozen=True)
class Sampling:
    """How the model is run; `generate` takes each as a keyword.

    model: the place of the user's factory ("file.py:make_model"), which a run of a user model needs; the others are not
    for such a run. cache: "per-visit" (the default) and "none" give the same text, the first sooner; "last-visit" takes
    1/loops the memory and approximates. scale: "rescale" lets eps follow the loops, "freeze" keeps that of training; by
    default the config's. exit_below: end the visits once one changes the stream by less than this fraction; there is no
    cache then.

    Raises `UserError` for an unknown cache, an exit_below out of range, or an option that is not the user model's.
    """

    model: str | None = None
    cache: str | None = None
    scale: str | None = None
    exit_below: float | None = None
    warn: Warn = lambda sentence: None

    def __post_init__(self) -> None:
        if self.cache is not None and self.cache not in CACHES:
            raise UserError(f"unknown cache {self.cache!r}: {nearest(self.cache, CACHES)}")
        if self.exit_below is not None and not 0 <= self.exit_below < 1:
            raise UserError(
                f"exit_below is a share of the stream, from 0 to less than 1, not {self.exit_below:g}: 0.01 ends the "
                "visits once one moves the stream by less than 1 %"
            )
        for name in ("cache", "scale", "exit_below"):
            if self.model is not None and getattr(self, name) is not None:
                raise UserError(f"{name} is an option of the house model: leave it out for {self.model}")

    @property
    def sharing(self) -> Sharing | None:
        """Say what the cache keeps; None: nothing."""
        return CACHES[self.cache or "per-visit"] if self.exit_below is None and self.model is None else None


def generate(
    run_dir: str | Path,
    prompt: str,
    tokens: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
    loops: int | None = None,
    **keywords: Any,
) -> str:
    """Continue `prompt` by `tokens` tokens from the run's newest whole checkpoint; the same seed gives the same text.

    temperature: 0 takes the likeliest token. loops: how often the core is applied; by default as in training. Keywords
    are those of `Sampling`.
    The model sees the last `data.context` tokens at most and half of them at least: when full, the older half goes.

    Raises `UserError` for values out of range, a folder that is no run, or a run without a checkpoint or text.
    """
    chosen = settings(Sampling, keywords, generate)
    between("tokens", tokens, 1, MOST_TOKENS)
    if loops is not None:
        between("loops", loops, 1, MOST_LOOPS)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature must be 0 (the likeliest token) or a positive number, not {temperature}")
    user = chosen.model is not None
    trained = load_model(run_dir, chosen.warn, model=chosen.model, loops=loops if user else None)
    start = [int(token) for token in trained.tokenizer.encode(prompt)]
    if not start:
        raise UserError("the prompt is empty: give at least one character to continue")
    generator = torch.Generator().manual_seed(seed)
    pick = partial(_pick, temperature=temperature, generator=generator)
    options = {} if user else {"loops": loops, "scale": chosen.scale, "exit_below": chosen.exit_below}
    called = (lambda tokens_BT, past: logits_of(trained.model, tokens_BT)) if user else trained.model
    added = continued(called, start, tokens, pick, trained.run.config.data.context, chosen.sharing, **options)
    return prompt + trained.tokenizer.decode(added)


@torch.inference_mode()
def continued(
    model: Callable[..., Tensor],
    start: list[int],
    count: int,
    pick: Callable[[Tensor], int],
    context: int,
    sharing: Sharing | None,
    **options: Any,
) -> list[int]:
    """Return `count` tokens after `start`, each chosen by `pick` from its logits [V].

    `sharing` None keeps no keys and values.

    `options` go to the model: loops, scale, exit_below.
    """
    ids, begin, past, known = list(start), -1, None, 0
    for _ in range(count):
        first = window(len(ids), context)
        if first != begin:
            begin, known = first, first
            past = None if sharing is None else Past(KeyValueCache(sharing))
        logits_BTV = model(torch.tensor([ids[known:]]), past=past, **options)
        known = known if past is None else len(ids)
        ids.append(pick(logits_BTV[0, -1].float()))
    return ids[len(start) :]


def window(length: int, context: int) -> int:
    """Return the first token that the model sees of `length`: the window moves on by half a context when it is full.

    >>> [window(length, context=8) for length in (1, 8, 9, 12, 13)]
    [0, 0, 4, 4, 8]
    """
    half = max(1, context // 2)
    return half * max(0, math.ceil((length - context) / half))


def _pick(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial(torch.softmax(logits_V / temperature, dim=-1), 1, generator=generator))
