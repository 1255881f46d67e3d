"""Every odd module, type, weight and batch through every door: right or one sentence, the model bit-identical after it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tally import Tally
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import loopscale as ls

CLAIM = "any module, type, weight or batch is right or gets one sentence; model and batch are bit-identical afterwards"
WIDTH, LOOPS = 8, 4


class Block(nn.Module):
    """x + mlp(norm(x)), with what a case changes."""

    def __init__(
        self,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        norm: Any = nn.LayerNorm,
        middle: Any = nn.GELU,
    ) -> None:
        super().__init__()
        self.norm, self.mlp = (
            norm(WIDTH),
            nn.Sequential(wrap(nn.Linear(WIDTH, 16)), middle(), wrap(nn.Linear(16, WIDTH))),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Looped(nn.Module):
    """The same blocks, four times."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks or [Block()])

    def forward(self, x: Tensor) -> Any:
        for _ in range(LOOPS):
            for layer in self.layers:
                x = layer(x)
        return x


class BatchFirst(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cell(x)[0]


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        x += self.mlp(self.norm(x))
        return x


class Cached(Block):
    """It keeps what it saw, as a cache does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [*self.seen[-2:], x.detach()]
        return super().forward(x)


class Counting(Block):
    """It counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex64) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.to(torch.complex64) @ self.weight).real


class ComplexStream(Complex):
    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.complex64)
        return x + x @ self.weight


class NoDerivative(torch.autograd.Function):
    """An operation with a backward pass and no forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 0.5

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0.5


class Custom(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + NoDerivative.apply(self.mlp(self.norm(x)))


class Checkpointed(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(lambda y: self.mlp(self.norm(y)), x, use_reentrant=False)


class Shaped(Looped):
    """It gives its output in another shape."""

    def __init__(self, shape: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(super().forward(x))


class NoGradient(Looped):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class Random(Looped):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x + torch.rand_like(x))


class Changing(Looped):
    """Another number of loops at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        for _ in range(1 + self.calls % 3):
            x = self.layers[0](x)
        return x


class Raising(Looped):
    def forward(self, x: Tensor) -> Any:
        raise KeyError("a thing\nover two lines")


class Scribbling(Looped):
    """It writes into its input."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.mul_(1.0))


class Itself(Looped):
    """It is its own submodule's name twice: one block under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.layers[0]


class Learning(Looped):
    """It moves its own weight at each call."""

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            next(self.parameters()).add_(1e-3)
        return super().forward(x)


def hooked() -> nn.Module:
    model = Looped()
    model.layers[0].register_forward_hook(lambda module, inputs, output: output * 1.0)
    model.layers[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.0,))
    model.layers[0].register_full_backward_hook(lambda module, before, after: None)
    return model


def frozen() -> nn.Module:
    model = Looped()
    return model.requires_grad_(False)


def inference() -> nn.Module:
    with torch.inference_mode():
        return Looped()


def with_gradients() -> nn.Module:
    model = Looped()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    return model


def mixed() -> nn.Module:
    model = Looped(Block(), Block())
    model.layers[0].eval()
    return model


def meta() -> nn.Module:
    with torch.device("meta"):
        return Looped()


def half_meta() -> nn.Module:
    model = Looped(Block(), Block())
    model.layers[1].to("meta")
    return model


def lazy() -> nn.Module:
    model = Looped()
    model.layers[0].mlp[0] = nn.LazyLinear(16)
    return model


def scripted_part() -> nn.Module:
    model = Looped()
    model.layers[0].mlp = torch.jit.script(model.layers[0].mlp)
    return model


def compiled_part() -> nn.Module:
    model = Looped()
    model.layers[0].mlp = torch.compile(model.layers[0].mlp, backend="eager")
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": Looped,
    "two blocks": lambda: Looped(Block(), Block()),
    "weight norm": lambda: Looped(Block(parametrizations.weight_norm)),
    "older weight norm": lambda: Looped(Block(weight_norm)),
    "spectral norm": lambda: Looped(Block(parametrizations.spectral_norm)),
    "older spectral norm": lambda: Looped(Block(spectral_norm)),
    "orthogonal": lambda: Looped(Block(parametrizations.orthogonal)),
    "dropout": lambda: Looped(Block(middle=lambda: nn.Dropout(0.3))),
    "batch norm": lambda: Looped(Block(norm=BatchFirst)),
    "no norm": lambda: Looped(Block(norm=lambda size: nn.Identity())),
    "in-place activation": lambda: Looped(Block(middle=lambda: nn.ReLU(inplace=True))),
    "attention": lambda: Looped(Attention()),
    "LSTM": lambda: Looped(Recurrent()),
    "in-place addition": lambda: Looped(InPlace()),
    "cache": lambda: Looped(Cached()),
    "counter": lambda: Looped(Counting()),
    "complex weights": lambda: Looped(Complex()),
    "complex stream": lambda: Looped(ComplexStream()),
    "custom function": lambda: Looped(Custom()),
    "checkpointed": lambda: Looped(Checkpointed()),
    "lazy": lazy,
    "scripted": lambda: torch.jit.script(Block()),
    "scripted part": scripted_part,
    "traced": lambda: torch.jit.trace(Block(), torch.randn(2, 3, WIDTH)),
    "compiled": lambda: torch.compile(Looped(), backend="eager"),
    "compiled part": compiled_part,
    "data parallel": lambda: nn.DataParallel(Looped()),
    "hooks": hooked,
    "frozen": frozen,
    "inference tensors": inference,
    "gradients there": with_gradients,
    "modes mixed": mixed,
    "meta": meta,
    "half meta": half_meta,
    "gives a tuple": lambda: Shaped(lambda x: (x, None)),
    "gives a dict": lambda: Shaped(lambda x: {"loss": x.mean(), "x": x}),
    "gives nothing": lambda: Shaped(lambda x: None),
    "gives a number": lambda: Shaped(lambda x: 3.0),
    "gives whole numbers": lambda: Shaped(lambda x: x.argmax(-1)),
    "gives no element": lambda: Shaped(lambda x: x[:0]),
    "detached": lambda: Shaped(lambda x: x.detach()),
    "no gradient": NoGradient,
    "random": Random,
    "changing": Changing,
    "raising": Raising,
    "writes into its input": Scribbling,
    "two names": Itself,
    "moves its weights": Learning,
    "no forward": nn.Module,
    "empty": lambda: nn.Sequential(),
    "no parameters": lambda: Looped(nn.Tanh()),
    "one visit": Block,
    "embedding alone": lambda: nn.Embedding(5, WIDTH),
}  # fmt: skip
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
WEIGHTS: dict[str, Callable[[Tensor], Any]] = {
    "zeros": lambda p: p.zero_(),
    "NaN": lambda p: p.fill_(math.nan),
    "infinite": lambda p: p.fill_(math.inf),
    "one NaN": lambda p: p.view(-1)[0].fill_(math.nan),
    "1e30": lambda p: p.mul_(1e30),
    "1e-40": lambda p: p.mul_(1e-40),
}
BATCHES: dict[str, Callable[[], Any]] = {
    "batch of one": lambda: torch.randn(1, 3, WIDTH),
    "sequence of one": lambda: torch.randn(2, 1, WIDTH),
    "one of one": lambda: torch.randn(1, 1, WIDTH),
    "empty batch": lambda: torch.randn(0, 3, WIDTH),
    "two axes": lambda: torch.randn(3, WIDTH),
    "another width": lambda: torch.randn(2, 3, WIDTH + 1),
    "whole numbers": lambda: torch.ones(2, 3, dtype=torch.long),
    "NaN batch": lambda: torch.full((2, 3, WIDTH), math.nan),
    "zeros batch": lambda: torch.zeros(2, 3, WIDTH),
    "needs a gradient": lambda: torch.randn(2, 3, WIDTH, requires_grad=True),
    "not contiguous": lambda: torch.randn(WIDTH, 3, 2).transpose(0, 2),
    "expanded": lambda: torch.randn(1, 1, WIDTH).expand(2, 3, WIDTH),
    "a word": lambda: "batch",
    "a tuple": lambda: (torch.randn(2, 3, WIDTH),),
    "a wrong dict": lambda: {"y": torch.randn(2, 3, WIDTH)},
    "sparse": lambda: torch.randn(2, 3, WIDTH).to_sparse(),
    "none": lambda: None,
}


def _diagnose(model: nn.Module, batch: Any) -> str:
    found = ls.diagnose(model, batch)
    json.dumps(found.to_json(), allow_nan=False)
    assert str(found).strip()
    return f"{found.loops} loops, {', '.join(sorted(found.codes))}"


def _diagnose_training(model: nn.Module, batch: Any) -> str:
    return " ".join(sorted(ls.diagnose(model, batch, training=True, products=3).codes))


def _attach(model: nn.Module, batch: Any) -> str:
    handle = ls.attach(model, loops=LOOPS, batch=batch)
    eps = handle.residual_scale
    handle.detach()
    assert math.isfinite(eps)
    return f"eps {eps:g}"


def _watch(model: nn.Module, batch: Any) -> str:
    with ls.watch(model) as seen:
        try:
            _called(model, batch)
        except Exception as problem:
            raise ls.UserError("the model itself raised") from problem
    return str(seen.visits())


def _called(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, dict):
        model(**batch)
    elif isinstance(batch, tuple):
        model(*batch)
    elif batch is not None:
        model(batch)


DOORS = {"diagnose": _diagnose, "diagnose in training": _diagnose_training, "attach": _attach, "watch": _watch}


def cases() -> dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]]:
    """Models and batches by name: each model as it is, the plain ones in every type, with every weight and batch."""
    whole = lambda: torch.randn(2, 3, WIDTH)  # noqa: E731
    found: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {}
    for name, make in MODELS.items():
        found[name] = (make, whole)
    for name in ("plain", "attention", "batch norm", "LSTM"):
        make = MODELS[name]
        for word, dtype in TYPES.items():
            found[f"{name}, {word}"] = (lambda m=make, t=dtype: m().to(t), lambda t=dtype: whole().to(t))
        for word, change in WEIGHTS.items():
            found[f"{name}, {word}"] = (lambda m=make, c=change: _with(m(), c), whole)
        for word, batch in BATCHES.items():
            found[f"{name}, {word}"] = (make, batch)
    return found


def _with(model: nn.Module, change: Callable[[Tensor], Any]) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            change(parameter)
    return model


def run(world: Path, tally: Tally, names: list[str] | None = None) -> None:
    """Go through every case and every door."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, (make, batch_of) in cases().items():
        if names is not None and name not in names:
            continue
        for door, act in DOORS.items():
            if tally.over():
                return
            torch.manual_seed(0)
            model, batch = make(), batch_of()
            before = picture(model, batch)
            tally.tried[door] += 1
            try:
                said = act(model, batch)
            except ls.UserError as problem:
                said = f"refused: {problem}"
                if "\n" in said or len(said) > 400:
                    tally.fault(f"{name}, {door}: a sentence over several lines, or too long: {said}")
            except Exception as problem:
                tally.fault(f"{name}, {door}: {type(problem).__name__}: {problem}")
                continue
            if names is not None:
                print(f"{name}, {door}: {said}")
            # What the model does to itself when it is called is its own: `watch` lets it.
            own = door == "watch" and name.partition(",")[0] in SELFISH
            if not own and (wrong := [key for key, value in picture(model, batch).items() if value != before.get(key)]):
                tally.fault(f"{name}, {door}: another {', '.join(wrong)} afterwards ({said[:200]})")


SELFISH = {
    *("batch norm", "counter", "cache", "changing", "random", "moves its weights", "dropout"),
    *("spectral norm", "older spectral norm", "in-place addition", "writes into its input"),
}


def picture(model: nn.Module, batch: Any) -> dict[str, Any]:
    """Everything of a model, its batch and torch that must stay: by value, bit for bit."""
    found: dict[str, Any] = {
        "random state": torch.get_rng_state().numpy().tobytes(),
        "default type": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "batch": _bits(batch),
        "names": [name for name, _ in model.named_modules()],
        "modes": [module.training for module in model.modules()],
    }
    for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks"):
        found[kind] = [len(getattr(module, kind, ())) for module in model.modules()]
    found["attributes"] = [
        sorted(vars(module)) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)
    ]
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        found[f"tensor {name}"] = (_bits(value), value.requires_grad, _bits(value.grad) if value.is_leaf else None)
    return found


def _bits(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_bits(one) for one in value]
    if isinstance(value, dict):
        return {key: _bits(one) for key, one in value.items()}
    if not isinstance(value, Tensor):
        return repr(value)
    if nn.parameter.is_lazy(value) or value.is_meta:
        return f"{type(value).__name__} {value.dtype}"
    if value.is_sparse:
        value = value.to_dense()
    value = value.detach().contiguous()
    return (
        str(value.dtype),
        tuple(value.shape),
        torch.view_as_real(value).numpy().tobytes()
        if value.is_complex()
        else value.view(torch.uint8).numpy().tobytes()
        if value.dim()
        else value.reshape(1).view(torch.uint8).numpy().tobytes(),
    )
