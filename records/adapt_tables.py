"""The tables of docs/adapt.md, from records and from the code's own table of families."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> dict:
    """A record by name."""
    return json.loads((ROOT / "records" / f"{name}.json").read_text())


def origin(record: dict) -> str:
    """Where the numbers come from, in brackets."""
    made = record["provenance"]
    return (
        f"(torch {made['torch']}, transformers {made['transformers']}, Python {made['python']}, {made['hardware']}, "
        f"{made['date'][:10]})"
    )


def architectures() -> str:
    """A row for each architecture that `attach` is held to."""
    record = load("attach_architectures")
    lines = [
        "| architecture | class | branches found by | at strength 0 | compiled, relative to eager |",
        "|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        zero = {"identity": "the identity", "norms": "the norms alone"}[row["strength_0"]]
        found = row["found_by"].removeprefix("convention: ")
        lines.append(
            f"| {row['architecture']} | `{row['class']}` | {found} | {zero} | {row['compiled_difference']:.0e} |"
        )
    same = sum(row["trace_agrees"] for row in record["rows"])
    exact = sum(row["scale_1"] and row["detach"] for row in record["rows"])
    graphs = max(row["graphs_made_by_changing_loops"] for row in record["rows"])
    lines += [
        "",
        f"{len(record['rows'])} architectures; scale 1 and `detach` bit-identical in {exact}; tracing finds the same "
        f"modules as the names in {same}; new graphs when N changes: {graphs}. {origin(record)}",
    ]
    return "\n".join(lines)


def pretrained() -> str:
    """What the loss of a pretrained model moves by."""
    record = load("convert_pretrained")
    lines = ["| core | N | strength | loss minus the original's, mean (worst window) |", "|---|---|---|---|"]
    for row in record["rows"]:
        full = " (full steps)" if row["rule"] == "none" else ""
        lines.append(
            f"| {row['range']}, {row['start']}..{row['stop'] - 1} | {row['loops']} | {row['strength']:g}{full} | "
            f"{row['gap_mean']:+.4f} ({row['gap_worst']:+.4f}) |"
        )
    windows, length = record["windows"]
    lines += [
        "",
        f"The original: {record['original_loss']['mean']:.4f} nats a token, {windows} windows of {length} tokens, "
        f"{record['model']['layers']} layers. {origin(record)}",
    ]
    return "\n".join(lines)


def inference() -> str:
    """Tokens a second, looped against unrolled."""
    record = load("inference")
    lines = ["| tokens per second, looped / unrolled | median (range) |", "|---|---|"]
    for row in record["rows"]:
        low, high = row["ratio_range"]
        lines.append(f"| {row['what']} | {row['ratio_median']:.2f} ({low:.2f} to {high:.2f}), {row['pairs']} pairs |")
    sizes, shape = record["parameters"], record["shape"]
    lines += [
        "",
        f"d = {shape['width']}, L = {shape['layers']}, N = {shape['loops']}; the Llama has {sizes['looped'] / 1e6:.1f} "
        f"million parameters looped and {sizes['unrolled'] / 1e6:.1f} unrolled. {origin(record)}",
    ]
    return "\n".join(lines)


def families() -> str:
    """The table of names in src/loopscale/adapt/conventions.py."""
    from loopscale.adapt.conventions import FAMILIES

    lines = ["| family | branches below a layer (? where present) |", "|---|---|"]
    for family in FAMILIES:
        lines.append(f"| {family.name} | {', '.join(f'`{path}`' for path in family.branches)} |")
    return "\n".join(lines)


BLOCKS = {
    "architectures": architectures,
    "families": families,
    "pretrained": pretrained,
    "inference": inference,
}
