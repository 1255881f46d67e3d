"""From a training and a machine to the plan: does it fit, how long, what does it cost, what to change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from loopscale.errors import UserError
from loopscale.planning.shape import Shape
from loopscale.planning.work import Memory, Work, memory


@dataclass(frozen=True)
class Machine:
    """`devices` with `memory` bytes each. `peak` is FLOP/s of the matrix units, `mfu` the share of it that is reached.

    `price` is dollars for a device and hour. Raises `UserError` for a number that is none.
    """

    devices: int = 8
    memory: float = 80e9
    peak: float = 989e12
    mfu: float = 0.4
    price: float | None = None

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise UserError(f"the number of devices must be at least 1, got {self.devices}")
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu is a share between 0 and 1, got {self.mfu:g}: 0.4 is 40 % of the peak")
        if not (self.memory > 0 and self.peak > 0) or (self.price is not None and self.price < 0):
            raise UserError("--memory and --peak-tflops must be positive, --price not negative")


@dataclass(frozen=True)
class Plan:
    """The answer. `changes` are config values that make it fit; empty when it fits, or when nothing helps.

    `cautions` say where the assumed share of the peak cannot hold. `unit` is what work, speed and `tokens` count: a token,
    or a row of the batch where nobody knows what its tokens are.
    """

    parameters: dict[str, int]
    flops_per_token: dict[str, float]
    memory: Memory
    memory_recomputed: Memory | None
    fits: bool
    changes: dict[str, Any]
    tokens: float
    tokens_per_second: float
    hours: float
    dollars: float | None
    sentence: str
    cautions: tuple[str, ...] = ()
    unit: str = "token"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        memories = {"memory": self.memory, "memory_recomputed": self.memory_recomputed}
        totals = {name: {**asdict(used), "total": used.total} for name, used in memories.items() if used is not None}
        return {**asdict(self), **totals}


def plan(work: Work, machine: Machine) -> Plan:
    """Predict a training on a machine.

    tokens/s = devices * peak * mfu / FLOPs per token, where MFU counts the model's FLOPs, without recomputation, whose time
    is added; hours = tokens / (tokens/s) / 3600; dollars = hours * devices * price.

    >>> plan(Shape(), Machine()).fits
    True
    """
    flops, used = work.flops(), memory(work, machine.devices)
    fits = used.total <= machine.memory
    changes = {} if fits else _changes(work, machine)
    rate = machine.devices * machine.peak * machine.mfu / flops["executed"]
    tokens = float(work.steps * work.batch * work.units)
    hours = tokens / rate / 3600
    return Plan(
        parameters=work.parameters(),
        flops_per_token=flops,
        memory=used,
        memory_recomputed=memory(replace(work, recompute=1), machine.devices) if isinstance(work, Shape) else None,
        fits=fits,
        changes=changes,
        tokens=tokens,
        tokens_per_second=rate,
        hours=hours,
        dollars=None if machine.price is None else hours * machine.devices * machine.price,
        sentence=_sentence(work, used, machine, changes),
        cautions=tuple(_cautions(work, machine)),
        unit=work.unit,
    )


def study_hours(trials: Iterable[Work], machine: Machine) -> float:
    """Return the device hours of many trainings, each on one device, at the machine's share of the peak."""
    flops = sum(work.flops()["executed"] * work.steps * work.batch * work.units for work in trials)
    return flops / (machine.peak * machine.mfu) / 3600


def people(number: float, units: str = "k M B T P") -> str:
    """Write a number for people: three digits and a unit.

    >>> people(10_485_760_000), people(9.98e9, "k M G T P"), people(12), people(0.00123)
    ('10.5 B', '9.98 G', '12', '0.00123')
    """
    scale = 0
    while abs(number) >= 999.5 and scale < len(units.split()):
        number, scale = number / 1000, scale + 1
    text = f"{number:.3g}"
    return f"{text} {units.split()[scale - 1]}" if scale else text


# Below these a matrix product is too small to keep a GPU's matrix units busy. Assumption, from the roofline of an H100
# (295 FLOPs per byte in bf16): a product [tokens, D] x [D, D] has about min(D, tokens) / 2 of them.
NARROW, FEW = 1024, 4096
WORDS = {"train.strategy": "fsdp", "train.precision": "bf16"}  # what these are set to


def _cautions(work: Work, machine: Machine) -> Iterator[str]:
    units = work.batch * work.units / (machine.devices * work.accumulate)
    rows = [(f"a width of {work.width}", work.width < NARROW), (f"{units:,.0f} {work.unit}s at a time", units < FEW)]
    if (small := [what for what, few in rows if few]) and machine.mfu > 0.1:
        yield (
            f"with {' and '.join(small)} a device does not reach {machine.mfu:.0%} of its peak, so it takes "
            "longer: measure tokens/s in a short run and pass the share by --mfu"
        )


def _changes(work: Work, machine: Machine) -> dict[str, Any]:
    """Return the first of a list of changes, each on top of those before, with which it fits; then without the needless."""
    made: dict[str, tuple[str, Any]] = {}

    def fits() -> bool:
        return memory(replace(work, **dict(made.values())), machine.devices).total <= machine.memory

    options, parts = [*work.help], work.accumulate
    while work.batch % (2 * parts * machine.devices) == 0:
        parts *= 2
        options.append(("train.accumulate", "accumulate", parts))
    for key, field, value in options:
        made[key] = (field, value)
        if fits():
            break
    else:
        return {}
    for key in list(made):
        kept = made.pop(key)
        if not fits():
            made[key] = kept
    return {key: WORDS.get(key, value) for key, (_, value) in made.items()}


def _sentence(work: Work, used: Memory, machine: Machine, changes: dict[str, Any]) -> str:
    need = f"{used.total / 1e9:.3g} GB of the {machine.memory / 1e9:.3g} GB of a device"
    if used.total <= machine.memory:
        return f"it fits: {need}"
    if changes:
        return f"it does not fit ({need}); it does with {', '.join(f'{k} = {v}' for k, v in changes.items())}"
    tried = ", ".join(WORDS.get(key, key.removeprefix("train.")) for key, _, _ in work.help)
    return f"it does not fit ({need}), and {tried} and accumulate do not help: take more devices"
