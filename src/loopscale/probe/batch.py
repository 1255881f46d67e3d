"""Something to run the model on: the user's batch, or one made up from the model's own sizes."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.errors import UserError
from loopscale.probe.tape import tensors_in

LOOP_WORDS = re.compile(
    r"loop|recur|cycle|repeat|iter|unroll|visit|ponder|hops|num_steps|n_steps|ut_steps|thinking|steps$", re.I
)
_ANSWERS = ("logits", "output", "outputs", "prediction", "predictions", "preds", "y")
TOKENS, SEQUENCES, LOOPS = 16, 2, 4
SIDE, SIDES = 16, (28, 32, 64, 96, 128, 224, 256, 384)  # of images: a table of positions fits one size alone
LARGE = 25_000_000


def small(model: nn.Module) -> bool:
    """Say whether copies of a model may be trained, which costs four times the weights, and many passes be made."""
    return sum(p.numel() for p in model.parameters()) <= LARGE


def call_model(model: nn.Module, batch: Any, extra: Mapping[str, Any] | None = None) -> Any:
    """Call the model: a dict as keywords, a tuple or list as positional arguments, anything else as the one argument."""
    more = dict(extra or {})
    if isinstance(batch, (_Written, _WrittenByName)):
        batch = _copied(batch)
    if isinstance(batch, Mapping):
        return model(**{**batch, **more})
    if isinstance(batch, (tuple, list)):
        # What is given by place and set by name is set in its place.
        by_place = (
            dict(zip(inspect.signature(model.forward).parameters, range(len(batch)), strict=False)) if more else {}
        )
        given = list(batch)
        for name in [name for name in more if name in by_place]:
            given[by_place[name]] = more.pop(name)
        return model(*given, **more)
    return model(batch, **more)


class _Written(tuple[Any, ...]):
    """Positional arguments that the model writes into: every call gets copies."""


class _WrittenByName(dict[str, Any]):
    """Keywords that the model writes into: every call gets copies."""


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (dict, _WrittenByName):
        return {name: _copied(inner) for name, inner in value.items()}
    if type(value) in (tuple, _Written):
        return tuple(map(_copied, value))
    return [_copied(inner) for inner in value] if type(value) is list else value


def prepare(model: nn.Module, batch: Any, extra: Mapping[str, Any] | None = None) -> Any:
    """Check the user's batch, or make one up; run it once without gradients to see that it fits.

    Raises `UserError`, one sentence, when the batch is of the wrong type or the model cannot be run on it.
    """
    if batch is not None:
        if not isinstance(batch, (Tensor, Mapping, tuple, list)):
            raise UserError(f"the batch is a {type(batch).__name__}: give a tensor, a tuple or a dict of tensors")
        plain = {**batch, **_no_cache(model)} if isinstance(batch, Mapping) else batch
        # It may be the one argument: a dict as a collator gives it, a tuple of tensors (a graph).
        whole = [(batch,)] if isinstance(batch, (Mapping, tuple, list)) else []
        return _first_that_fits(model, [*_with_required(model, plain), *whole], extra)
    made = [filled for plain in _candidates(model) for filled in _with_required(model, plain)]
    if not made:
        raise UserError("cannot tell what the model reads, it has no embedding and no linear layer: pass a batch")
    try:
        return _first_that_fits(model, made, extra)
    except UserError as problem:
        raise UserError(
            f"no made-up batch fits the model: pass a batch, or let the factory return (model, batch) ({problem})"
        ) from problem


def _first_that_fits(model: nn.Module, ways: list[Any], extra: Mapping[str, Any] | None) -> Any:
    """Give the first of several spellings of a batch that the model runs on; raises what the first one raised."""
    problem: UserError | None = None
    for way in ways:
        try:
            return _tried(model, way, extra)
        except UserError as mistake:
            problem = problem or mistake
    assert problem is not None
    raise problem


def _tried(model: nn.Module, batch: Any, extra: Mapping[str, Any] | None) -> Any:
    """Run the model once on a copy; give the batch, marked where the model wrote into the copy.

    Raises `UserError` when it cannot run, or when the call changed a parameter, which is put back where the model is small.
    """
    given = _copied(batch)
    weights = [(name, p, p._version) for name, p in model.named_parameters() if not p.is_inference()]
    keeps = small(model)
    kept = [p.detach().clone() if keeps else None for _, p, _ in weights]
    _try(model, given, extra)
    moved = [(name, p, value) for (name, p, version), value in zip(weights, kept, strict=True) if p._version != version]
    for _, parameter, value in moved:
        if value is not None:
            parameter.data.copy_(value)
    if moved:
        raise UserError(f"a call of the model changes its parameter {moved[0][0]!r}: keep what changes in a buffer")
    own = {id(tensor) for tensor in tensors_in(batch)}
    copies = [tensor for tensor in tensors_in(given) if id(tensor) not in own and not tensor.is_inference()]
    if not any(tensor._version for tensor in copies):
        return batch
    if isinstance(batch, Mapping):
        return _WrittenByName(batch)
    return _Written(batch if isinstance(batch, (tuple, list)) else (batch,))


def _try(model: nn.Module, batch: Any, extra: Mapping[str, Any] | None) -> None:
    try:
        with torch.no_grad():
            call_model(model, batch, extra)
    except UserError:
        raise
    except Exception as cause:  # a model may raise anything at all
        line = textwrap.shorten((str(cause).strip().splitlines() or [""])[0], 300, placeholder=" ...")
        raise UserError(
            f"the model cannot run on the batch: {type(cause).__name__}: {line}{_hint(model, batch, str(cause))}"
        ) from cause


def _hint(model: nn.Module, batch: Any, said: str) -> str:
    """Return what to change in the batch of a model that looks tokens up; empty where that is not told."""
    tables = {name: m.num_embeddings for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    given = [t for t in tensors_in(batch) if t.numel()]
    if not tables or not given:
        return ""
    tokens = next((t for t in given if not t.is_floating_point()), None)
    if tokens is None:
        return " (tokens are whole numbers: give batch.long())" if re.search("indices|Long", said) else ""
    if given[0].ndim == 1 and tokens is given[0] and int(tokens.max()) < max(tables.values()):
        return " (the batch has one axis and tokens are [batch, time]: give batch[None])"
    return _beyond_a_table(tables, tokens) if re.search("out of (range|bounds)", said) else ""


def _beyond_a_table(tables: Mapping[str, int], tokens: Tensor) -> str:
    """Return what to change when a look-up fails.

    The tokens are beyond the vocabulary, or more than there are positions.
    """
    length, largest = tokens.shape[-1] if tokens.ndim else 1, int(tokens.max())
    most = max(tables, key=tables.__getitem__)
    if largest >= tables[most]:
        return f" (token {largest} is beyond the {tables[most]} rows of {most!r}: give tokens below {tables[most]})"
    short = {name: rows for name, rows in tables.items() if rows < length}
    if short:
        name = min(short, key=short.__getitem__)
        return (
            f" (the batch is {length} long, {name!r} has {short[name]} rows, a context: give batch[:, :{short[name]}])"
        )
    return " (longer than the model's context, or tokens beyond its vocabulary: give a shorter batch or smaller tokens)"


def _candidates(model: nn.Module) -> list[Any]:
    place = next(model.parameters(), torch.zeros(())).device
    generator = torch.Generator().manual_seed(0)
    made: list[Any] = []
    sizes = sorted(m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings > 8)
    main = getattr(model, "main_input_name", None)
    if sizes:
        # One sequence for a large model: what a backward pass keeps would outgrow the weights.
        rows = SEQUENCES if small(model) else 1
        tokens = torch.randint(0, sizes[0], (rows, min(TOKENS, sizes[0])), generator=generator).to(place)
        made.append(tokens)
        if main is not None:
            made.insert(0, {main: tokens, **_decoder_tokens(model, tokens), **_no_cache(model)})
    config: Any = getattr(model, "config", None)
    if isinstance(getattr(config, "image_size", None), int):
        image = (SEQUENCES, int(getattr(config, "num_channels", 3)), config.image_size, config.image_size)
        made.insert(0, torch.randn(image, generator=generator).to(place))
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is not None:
        made.append(torch.randn(SEQUENCES, conv.in_channels, SIDE, SIDE, generator=generator).to(place))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for width in _widths(model):
        made.append(torch.randn(SEQUENCES, TOKENS, width, generator=generator).to(place, dtype))
        made.append(torch.randn(SEQUENCES, width, generator=generator).to(place, dtype))
    tables = [p.shape[0] for p in model.parameters() if p.ndim == 2 and p.shape[0] > 8]
    if tables and not sizes:  # tokens that are looked up in a matrix of the model's own
        made.append(torch.randint(0, min(tables), (SEQUENCES, TOKENS), generator=generator).to(place))
    if conv is not None:
        made += [torch.randn(SEQUENCES, conv.in_channels, s, s, generator=generator).to(place) for s in SIDES]
    return made


def _with_required(model: nn.Module, batch: Any) -> list[Any]:
    """Add what forward demands besides a single tensor: numbers of loops by name, else the same tensor, else a number."""
    if not isinstance(batch, Tensor):
        return [batch]
    parameters = list(inspect.signature(model.forward).parameters.values())
    demanded = [
        p.name for p in parameters[1:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not demanded or parameters[0].kind in (parameters[0].VAR_POSITIONAL, parameters[0].POSITIONAL_ONLY):
        return [batch]
    first, loops = {parameters[0].name: batch}, {name for name in demanded if LOOP_WORDS.search(name)}
    numbers = {p.name for p in parameters if p.annotation in (int, "int")} | loops
    return [
        # A copy: two inputs of equal value are no single value that is read twice.
        {**first, **{name: LOOPS if name in numbers else batch.clone() for name in demanded}},
        {**first, **dict.fromkeys(demanded, LOOPS)},
    ]


def _decoder_tokens(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    return {"decoder_input_ids": tokens} if both else {}


def _no_cache(model: nn.Module) -> dict[str, Any]:
    # A cache of keys would join the visits of a shared layer, which is not what training does.
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _widths(model: nn.Module) -> list[int]:
    found: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            found.append(module.in_features)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            found.append(int(module.normalized_shape[-1]))
    found += [p.shape[-1] for p in model.parameters() if p.ndim >= 1]
    return list(dict.fromkeys(found))[:3]


def first_float(output: Any) -> Tensor | None:
    """Return the main floating-point tensor of a model's output: of tensors, the first of more than a number; a loss last.

    Of a list of one shape, or of dicts with the same keys, as models give that answer at every visit, the last.
    """
    if not isinstance(output, (Tensor, list, tuple, Mapping)) and hasattr(output, "__dict__"):
        output = vars(output)
    first = output[0] if isinstance(output, tuple) and output else output
    if isinstance(output, Mapping):
        # A dict of lists: the entry that answers, at its last visit.
        answers = sorted(output.items(), key=lambda item: item[0] not in _ANSWERS)
        output = {name: value[::-1] if _visits(value) else value for name, value in answers}
    elif isinstance(first, list) and (_visits(first) or (first and isinstance(first[0], Mapping))):
        output = first[::-1]
    found = [t for t in tensors_in(output) if t.is_floating_point()]
    found = [t for t in found if t.ndim > 0] or found
    return found[0] if found else None


def _visits(value: Any) -> bool:
    """Say whether this is a list of answers of one shape, one for each visit."""
    return isinstance(value, list) and len({tuple(t.shape) for t in tensors_in(value)}) == 1
