"""`loopscale scale`: the table of everything a rule prescribes at one size. No torch."""

from __future__ import annotations

from typing import Any

import click

from loopscale.cli.options import JSON, find_rule, finish
from loopscale.parameterization import OPTIMIZERS, RULES, Depth, Width, get_rule, prescription


@click.command()
@click.option("--loops", type=int, required=True, help="N: how often the stack is applied.")
@click.option("--layers", type=int, required=True, help="L: unique layers in the stack; attention + MLP are one layer.")
@click.option("--width", type=int, help="Width of the stream.")
@click.option("--base-width", type=int, help="Width the rates were tuned at (muP); without it, no width rule.")
@click.option("--base-layers", type=int, help="Layers the rates were tuned at; without it, L counts absolutely.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="lambda, tuned once at the base.")
@click.option("--rule", default="looped", show_default=True, help=f"file.py:RULE, or one of: {', '.join(RULES)}.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", show_default=True)
@JSON
def command(
    loops: int, layers: int, width: int | None, base_width: int | None, rule: str, as_json: bool, **more: Any
) -> None:
    """Print the residual scale and every multiplier that RULE gives a network of N loops and L layers."""
    if base_width is not None and width is None:
        raise click.UsageError("--base-width needs --width: name the width of the network too")
    depth, chosen = Depth(loops, layers), get_rule(find_rule(rule))
    size = None if width is None else Width(width, base_width)
    rows = prescription(depth, size, rule=chosen, **more)
    given = {"rule": rule, "loops": loops, "layers": layers, "width": width, "base_width": base_width, **more}
    scales = {row["name"]: row["value"] for row in rows if "." not in row["name"]}
    lines = [f"{chosen.name}: {chosen.summary}", f"N = {loops} loops, L = {layers} layers", ""]
    lines += [f"{row['name']:<26}{row['value']:>12.6g}   {row['why']} [{row['source']}]" for row in rows]
    finish({**given, **scales, "values": rows}, "\n".join(lines), as_json)
