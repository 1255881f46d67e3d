"""`loopscale plan`: what a training will need, before anything is rented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loopscale.errors import UserError

if TYPE_CHECKING:
    from loopscale.planning import Plan, Shape
    from loopscale.train import TrainConfig

UNITS = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace a value of the config.")
@click.option("--devices", type=int, default=8, show_default=True)
@click.option("--memory", default="80GB", show_default=True, help="Of one device.")
@click.option(
    "--peak-tflops", type=float, default=989.0, show_default=True, help="Of one device (H100, H200: 989 in bf16)."
)
@click.option("--mfu", type=float, default=0.4, show_default=True, help="Share of the peak that is reached.")
@click.option("--price", type=float, help="Dollars for one device and hour.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    config: Path,
    sets: tuple[str, ...],
    devices: int,
    memory: str,
    peak_tflops: float,
    mfu: float,
    price: float | None,
    as_json: bool,
) -> int:
    """Predict parameters, FLOPs, memory, hours and dollars of the training in CONFIG, of any size.

    Exit codes: 0 it fits, 1 it does not (and what would help), 2 a mistake to mend.
    """
    from loopscale.planning import Machine, plan
    from loopscale.train import load_config

    machine = Machine(devices, _bytes(memory), peak_tflops * 1e12, mfu, price)
    values = load_config(config, sets)
    batch = values.data.batch_size
    if batch % (devices * values.train.accumulate):
        raise UserError(
            f"data.batch_size = {batch} cannot be dealt out to {devices} devices x {values.train.accumulate} accumulated "
            f"parts: use a multiple of {devices * values.train.accumulate}"
        )
    answer = plan(shape_of(values), machine)
    click.echo(json.dumps(answer.to_dict()) if as_json else _text(answer, devices))
    return 0 if answer.fits else 1


def shape_of(config: TrainConfig) -> Shape:
    """The numbers that the plan needs; the vocabulary is the config's, or that of its tokenizer."""
    from loopscale.nn.recompute import Recompute
    from loopscale.planning import Shape

    bpe = config.data.tokenizer == "bpe"
    network = config.network(config.data.vocab_size or (1024 if bpe else 256))
    trained = min(network.gradient_visits or network.loops, network.loops)
    return Shape(
        vocab_size=network.vocab_size,
        width=network.width,
        layers=network.layers,
        loops=network.loops,
        prelude=network.prelude,
        coda=network.coda,
        kv_width=(network.kv_heads or network.heads) * network.head_dim,
        mlp_width=network.mlp_width,
        tied_readout=network.tied_readout,
        gradient_visits=network.gradient_visits,
        context=config.data.context,
        batch=config.data.batch_size,
        steps=config.train.steps,
        optimizer=config.optim.optimizer,
        bf16=config.train.precision == "bf16",
        sharded=config.train.strategy == "fsdp",
        accumulate=config.train.accumulate,
        recompute=config.train.recompute,
        recompute_keep=config.train.recompute_keep,
        loss_rows=config.train.loss_rows,
        extra_visits=Recompute(config.train.recompute, config.train.recompute_keep).extra_visits(trained) or None,
    )


def _bytes(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS:
        raise UserError(f"--memory {text!r} is no size: write 80GB or 40GiB")
    return float(found[1]) * UNITS[found[2].upper()]


def _text(answer: Plan, devices: int) -> str:
    parts, flops, used, other = answer.parameters, answer.flops_per_token, answer.memory, answer.memory_recomputed
    lines = ["parameters  " + ", ".join(f"{name} {count:,}" for name, count in parts.items())]
    lines.append(f"FLOPs a token  {flops['model']:.3g}, with recomputation {flops['executed']:.3g}")
    for name in ("weights", "gradients", "optimizer", "gathered", "activations", "logits", "runtime"):
        lines.append(f"memory  {name:<12} {getattr(used, name) / 1e9:10.3f} GB")
    lines.append(
        f"memory  total        {used.total / 1e9:10.3f} GB (every visit recomputed: {other.total / 1e9:.3f} GB)"
    )
    lines.append(f"speed   {answer.tokens_per_second:,.0f} tokens/s on {devices} devices, {answer.tokens:.3g} tokens")
    cost = "" if answer.dollars is None else f", {answer.dollars:,.0f} dollars"
    lines.append(f"time    {answer.hours:.3g} hours{cost}")
    return "\n".join([*lines, answer.sentence])
