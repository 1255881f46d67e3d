"""The tables of docs/performance.md, from the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> dict:
    """A record by name."""
    return json.loads((ROOT / "records" / f"{name}.json").read_text())


def ratios(*names: str) -> str:
    """One line a record: its claim, its ratio, what it was measured on."""
    rows = ["| measured | ratio, median (range) | pairs |", "|---|---|---|"]
    for name in names:
        if (ROOT / "records" / f"{name}.json").exists():
            record = load(name)
            low, high = record["ratio_range"]
            rows.append(
                f"| {record['claim']} | {record['ratio_median']:.3f} ({low:.3f} to {high:.3f}) | {record['pairs']} |"
            )
    return "\n".join(rows)


def peers() -> str:
    """Our step against every peer, at every N, eager and compiled."""
    record = load("step_time")
    names = list(record["rows"][0]["against"])
    lines = ["| | N | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for row in record["rows"]:
        cells = [
            f"{r['ratio_median']:.2f} ({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f})"
            for r in row["against"].values()
        ]
        lines.append(f"| {'compiled' if row['compiled'] else 'eager'} | {row['loops']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"({record['clock']}; {_shape(record)})"])


def kernels() -> str:
    """How much of the fastest peer's step no way of writing the loop can save, and the other architectures."""
    record = load("step_time")
    lines = []
    for row in record["rows"]:
        if "kernels" not in row:
            continue
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in row["kernels"].items())
        lines.append(f"- N = {row['loops']}, {row['fastest_peer']}, eager: {shares} of the step's time.")
        others = ", ".join(
            f"{name} {found['ratio_median']:.2f}" for name, found in row["per_flop"].items() if name != "ours"
        )
        if others:
            lines.append(f"- N = {row['loops']}: our seconds per floating-point operation over those of {others}.")
    return "\n".join(lines)


def loss() -> str:
    """The loss over the vocabulary, by the way it is computed."""
    record = load("cross_entropy")
    ways = list(record["rows"][0]["time_ratio"])[1:]
    lines = [
        "| vocabulary | positions | width | " + " | ".join(f"{way}: time, memory" for way in ways) + " |",
        "|---|---|---|" + "---|" * len(ways),
    ]
    for row in record["rows"]:
        cells = [f"{row['time_ratio'][way]:.2f}, {row['memory_ratio'][way]:.2f}" for way in ways]
        lines.append(f"| {row['vocabulary']} | {row['positions']} | {row['width']} | " + " | ".join(cells) + " |")
    origin = record["provenance"]
    where = f"torch {origin['torch']}, {origin['hardware']}, {origin['date'][:10]}"
    return "\n".join(
        [*lines, "", f"(over whole logits; {record['clock']}, medians of {record['pairs']} pairs; {where})"]
    )


def memory() -> str:
    """MB of a step over N, by what is kept."""
    if not (ROOT / "records" / "memory_over_loops.json").exists():
        return "Not recorded yet."
    record = load("memory_over_loops")
    loops = list(next(iter(record["rows"].values())))
    lines = ["| MB at N = | " + " | ".join(loops) + " | CPU s at the last |", "|---|" + "---|" * (len(loops) + 1)]
    for mode, row in record["rows"].items():
        cells = [f"{row[n]['mb']:.0f} ({row[n]['resident_mb']:.0f})" for n in loops]
        lines.append(f"| {mode} | " + " | ".join(cells) + f" | {row[loops[-1]]['cpu_seconds']:.1f} |")
    return "\n".join([*lines, "", f"({_shape(record)}, gradients included; in brackets resident memory)"])


def stacks() -> str:
    """Throughput of stacks over one trial after another; what `auto` takes; a whole set of trials by every way."""
    if not (ROOT / "records" / "stacks.json").exists():
        return "Not recorded yet."
    record = load("stacks")
    counts = list(record["rows"][0]["steps"])
    heads = [*(f"K = {count}" for count in counts), "K = 16, all cores", "`auto` takes"]
    lines = ["| trials | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for row in record["rows"]:
        cells = [_over(found) for found in (*row["steps"].values(), row["at_work"])]
        lines.append(f"| {row['size']} | " + " | ".join([*cells, row["at_work"]["auto"]]) + " |")
    origin = record["provenance"]
    where = f"torch {origin['torch']}, {origin['hardware']}, {origin['date'][:10]}"
    lines += [
        "",
        f"(steps a CPU second over those of one trial at a time, medians of {record['pairs']} pairs; {where})",
    ]
    walls = record["rows"][0].get("walls")
    if walls is None:
        return "\n".join(lines)
    over = walls["over_one_process"]
    whole = [
        f"16 whole trials of {record['rows'][0]['size']} over one process (wall time, starting the processes included,",
        f"{over['stacks']['pairs']} rounds): a trial in each of two processes {_over(over['processes'])},",
        f"stacks in them {_over(over['stacks'])}.",
    ]
    return "\n".join([*lines, "", *whole])


def _over(found: dict | str) -> str:
    if isinstance(found, str):
        return found
    low, high = found["ratio_range"]
    return f"{found['ratio_median']:.2f} ({low:.2f} to {high:.2f})"


def _shape(record: dict) -> str:
    shape = ", ".join(f"{key} {value}" for key, value in record["shape"].items())
    origin = record["provenance"]
    return f"{shape}; torch {origin['torch']}, {origin['hardware']}, {origin['date'][:10]}"


def driver() -> str:
    """What a study costs besides its trials, over the number of trials."""
    record = load("driver")
    lines = [
        "| trials | driver, ms of CPU per trial | resuming, seconds of CPU | journal, KB per trial |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['trials']:,} | {row['driver_ms_per_trial']:.1f} | {row['resume_cpu_seconds']:.2f} | "
        f"{row['journal_bytes_per_trial'] / 1000:.1f} |"
        for row in record["rows"]
    ]
    origin = record["provenance"]
    where = f"torch {origin['torch']}, {origin['hardware']}, {origin['date'][:10]}"
    return "\n".join([*lines, "", f"(an objective that returns at once, one worker; {where})"])


def exponents() -> str:
    """How costs grow with each size: the exponent over all sizes measured, and between the two largest."""
    record = load("cost_exponents")
    names = {"seconds": "time of a step", "mb_kept": "memory kept for the backward pass", "mb_checkpoint": "checkpoint"}
    lines = ["| over | sizes | " + " | ".join(names.values()) + " |", "|---|---|" + "---|" * len(names)]
    for axis, row in record["rows"].items():
        if axis != "trials":
            cells = [f"{row['exponents'][name]['all']:.2f}, {row['exponents'][name]['last']:.2f}" for name in names]
            lines.append(f"| {axis} | {row['sizes'][0]} to {row['sizes'][-1]} | " + " | ".join(cells) + " |")
    base = ", ".join(f"{name} {value}" for name, value in record["base"].items())
    origin, trials = record["provenance"], record["rows"]["trials"]
    driver, counts = trials["exponents"]["driver"], f"{trials['sizes'][0]:,} to {trials['sizes'][-1]:,} trials"
    where = f"torch {origin['torch']}, {origin['hardware']}, {origin['date'][:10]}"
    said = f"The driver of a study: {driver['all']:.2f}, {driver['last']:.2f} over {counts}."
    return "\n".join([*lines, "", said, "", f"(the other sizes at {base}; CPU seconds of one thread; {where})"])


def precision() -> str:
    """A step in bf16 over one in fp32, over the width."""
    record = load("precision")
    rows = [
        f"| {row['width']} | {row['ratio_median']:.2f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f}) |"
        for row in record["rows"]
    ]
    shape = ", ".join(f"{name} {value}" for name, value in record["shape"].items())
    origin = record["provenance"]
    where = f"{shape}; CPU seconds of one thread, {record['rows'][0]['pairs']} pairs; torch {origin['torch']}"
    lines = ["| width | a step in bf16 / in fp32 |", "|---|---|", *rows, ""]
    lines.append(f"({where}, {origin['hardware']}, {origin['date'][:10]})")
    if not (against := record.get("against")):
        return "\n".join(lines)
    head = f"| width | N | `auto` takes | over {record['peer']} in fp32 | over the same under the same autocast |"
    return "\n".join([*lines, "", head, "|---|---|---|---|---|", *map(_against, against)])


def _against(row: dict) -> str:
    ratios = (_over(row["over_fp32"]), _over(row["over_the_same"]))
    return f"| {row['width']} | {row['loops']} | {row['auto']} | {' | '.join(ratios)} |"


def prepare() -> str:
    """Preparing text with a BPE: the batches of all cores over a document at a time."""
    if not (ROOT / "records" / "prepare.json").exists():
        return "Not recorded yet."
    record = load("prepare")
    origin = record["provenance"]
    where = f"torch {origin['torch']}, {origin['hardware']}, {origin['date'][:10]}"
    large = record.get("large")
    more = (
        f" {large['megabytes']:,.0f} MB take {large['seconds']:.0f} s and {large['peak_bytes'] / 1e6:.0f} MB of memory, "
        f"{record['megabytes']:g} MB {record['runs']['new'][0]['peak_bytes'] / 1e6:.0f} MB: tokens go to disk as they come."
        if large
        else ""
    )
    return (
        f"{record['megabytes']:g} MB with a vocabulary of {record['vocab_size']:,}: {record['ratio_cpu_seconds']:.2f} of "
        f"the CPU time of a document at a time, the same tokens; in wall time on two quiet cores "
        f"{record['ratio_seconds']:.2f}. The largest memory is {record['peak_over_a_quarter_of_the_text']:.2f} times that "
        f"of a quarter of the text.{more} ({where})"
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "ratios": lambda: ratios(
        "step_time", "sampled_loops", "compile_time", "memory_over_loops", "cross_entropy", "train_overhead"
    ),
    "peers": peers,
    "kernels": kernels,
    "loss": loss,
    "memory": memory,
    "exponents": exponents,
    "precision": precision,
    "prepare": prepare,
    "stacks": stacks,
    "driver": driver,
}
