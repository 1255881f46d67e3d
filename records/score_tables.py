"""The tables of docs/reference/scoreboard.md and known-models.md, drawn from their records."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Rows = list[dict[str, Any]]


def _load(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return record


def _cases() -> Rows:
    rows: Rows = _load("diagnosis_scoreboard")["cases"]
    return rows


def _severe(codes: list[str]) -> set[str]:
    from loopscale.findings import BY_CODE

    return {code for code in codes if BY_CODE[code].severity != "info"}


def _false_alarm(row: dict[str, Any]) -> bool:
    """A warning or an error said of a model that has none."""
    return not _severe(row["truth"]) and bool(_severe(row["said"]))


def _silent(row: dict[str, Any]) -> bool:
    """A model with a fault of which no warning and no error is said."""
    return bool(_severe(row["truth"])) and not _severe(row["said"])


def _counted(rows: Rows) -> str:
    right = sum(not row["wrong"] for row in rows)
    faulty = sum(bool(_severe(row["truth"])) for row in rows)
    alarms = sum(map(_false_alarm, rows))
    return (
        f"{len(rows)} | {faulty} | {right} ({right / len(rows):.0%}) | {sum(map(_silent, rows))} | "
        f"{alarms} of {len(rows) - faulty} | {sum('crash' in row['wrong'] for row in rows)} | "
        f"{sum('healthy' in row['wrong'] for row in rows)}"
    )


_HEAD = "cases | with a fault | right in every field | silent | false alarms | crashes | healthy with a symptom |"


def by_set() -> str:
    """A row for each collection of models, and all together."""
    rows = _cases()
    lines = [f"| collection | {_HEAD}", "|---|" + "---|" * 7]
    for name in dict.fromkeys(row["set"] for row in rows):
        lines.append(f"| {name} | {_counted([row for row in rows if row['set'] == name])} |")
    return "\n".join([*lines, f"| all | {_counted(rows)} |"])


def by_code() -> str:
    """For each finding: how many have it, of how many it is said, missed and said wrongly."""
    rows = _cases()
    has, hit, wrong = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        accepted = [row["truth"], row.get("or", row["truth"])]
        truth = min(accepted, key=lambda codes: set(codes) != set(row["said"]))
        has.update(truth)
        hit.update(set(truth) & set(row["said"]))
        wrong.update(set(row["said"]) - set(truth))
    lines = [
        "| finding | models that have it | said | missed | said of a model that has it not |",
        "|---|---|---|---|---|",
    ]
    for code in sorted(has | wrong):
        lines.append(f"| `{code}` | {has[code]} | {hit[code]} | {has[code] - hit[code]} | {wrong[code]} |")
    return "\n".join(lines)


def by_kind() -> str:
    """Right of all, for each kind of model and each difficulty."""
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in _cases():
        found[row["kind"]][row["hard"]].append(not row["wrong"])
    ways = ("plain", "look-alike", "two faults", "unusual code")
    lines = ["| kind | " + " | ".join(ways) + " |", "|---|" + "---|" * len(ways)]
    for kind in sorted(found):
        cells = [f"{sum(found[kind][way])} of {len(found[kind][way])}" if found[kind][way] else "" for way in ways]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _codes(codes: list[str]) -> str:
    return ", ".join(f"`{code}`" for code in codes) or "none"


def wrong() -> str:
    """Each model of which something wrong is said."""
    rows = [row for row in _cases() if row["wrong"]]
    if not rows:
        return "(none at present)"
    lines = ["| model | truth | said | wrong in |", "|---|---|---|---|"]
    for row in rows:
        said = row["verdict"] if "crash" in row["wrong"] else _codes(row["said"])
        lines.append(f"| {row['case']} | {_codes(row['truth'])} | {said} | {', '.join(row['wrong'])} |")
    return "\n".join(lines)


def first_sight() -> str:
    """List what was said of our own models when they were first diagnosed, where it was wrong."""
    told = _load("diagnosis_scoreboard")["first_sight"]
    corrected = told["truth_was_wrong"]
    rows = [row for row in _cases() if "first" in row]
    alarms = sum(_false_alarm({**row, "said": row["first"]["said"]}) for row in rows)
    silent = sum(_silent({**row, "said": row["first"]["said"]}) for row in rows)
    right = told["cases"] - len(rows) - len(corrected)
    lines = [
        f"Of {told['cases']} models {right} were right in every field; of {len(rows)} the diagnosis was wrong "
        f"({alarms} false alarms, {silent} silent); of {len(corrected)} the truth was, and was corrected: "
        f"{', '.join(corrected)}.",
        "",
        "| model | truth | said at first | wrong in | said now |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        then = row["first"]
        lines.append(
            f"| {row['case']} | {_codes(row['truth'])} | {_codes(then['said'])} | {', '.join(then['wrong'])} | "
            f"{_codes(row['said'])} |"
        )
    return "\n".join(lines)


def reported() -> str:
    """The failures that users reported: what was said then and what is said now."""
    lines = ["| model | as reported | truth | said now |", "|---|---|---|---|"]
    for row in _cases():
        if row.get("was"):
            mark = "" if not row["wrong"] else f" (wrong in {', '.join(row['wrong'])})"
            lines.append(f"| {row['case']} | {row['was']} | {_codes(row['truth'])} | {_codes(row['said'])}{mark} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def known() -> str:
    """A row for each known model: what one diagnosis of it measured."""
    record = _load("known_models")
    lines = [
        "| model | code | N x L | growth over the visits | eps | radius | kappa | what the diagnosis says |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in record["models"].items():
        gain = f"{row['law']}, gain {_number(row['gain'])}" if row["law"] else "not measured"
        lines.append(
            f"| {name} | {row['code']} | {row['loops']} x {row['layers']} | {gain} | {_number(row['scale'])} | "
            f"{_number(row['radius'])} | {_number(row['kappa'])} | {_codes(row['codes'])} |"
        )
    origin = record["provenance"]
    return "\n".join([*lines, "", f"(random weights, tiny sizes; torch {origin['torch']}, {origin['hardware']})"])


def _held(batch: str, sight: str, truth: str = "wrong") -> Rows:
    """The rows of a held-out batch; with `truth="wrong_corrected"` judged by the corrected truths where one was wrong."""
    rows = _load("diagnosis_heldout")["batches"].get(batch, {}).get(sight, {}).get("cases", [])
    told = []
    for row in rows:
        stated = row["truth"] | (row.get("corrected", {}) if truth == "wrong_corrected" else {})
        told.append({**row, "truth": stated["codes"], "or": stated.get("other"), "wrong": row.get(truth, row["wrong"])})
    return told


def _latest(batch: str, sight: str, truth: str = "wrong") -> Rows:
    """The rows of a sight; what was not run again stands as at first sight (a slow test holds what was said of it)."""
    again = {row["case"]: row for row in _held(batch, sight, truth)}
    return [again.get(row["case"], row) for row in _held(batch, "first", truth)] if again else []


SIGHTS = {
    "a, first sight": ("a", "first"),
    "a, after the causes were mended": ("a", "now"),
    "b, first sight": ("b", "first"),
    "b, the wrong ones again after mends": ("b", "now"),
    "c, first sight": ("c", "first"),
    "c, the wrong ones again after mends": ("c", "now"),
    "d, first sight": ("d", "first"),
    "d, the wrong ones again after mends": ("d", "now"),
    "e, first sight": ("e", "first"),
    "e, the wrong ones again after mends": ("e", "now"),
    "f, first sight": ("f", "first"),
    "f, the wrong ones again after mends": ("f", "now"),
}
BATCHES = tuple(dict.fromkeys(batch for batch, _ in SIGHTS.values()))


def held_out() -> str:
    """A row for each batch and sight, by the truths as stated and as corrected."""
    lines = [f"| batch | {_HEAD} by corrected truths |", "|---|" + "---|" * 8]
    for name, (batch, sight) in SIGHTS.items():
        rows = _latest(batch, sight)
        if rows:
            right = sum(not row["wrong"] for row in _latest(batch, sight, "wrong_corrected"))
            lines.append(f"| {name} | {_counted(rows)} | {right} ({right / len(rows):.0%}) |")
    return "\n".join(lines)


def held_out_kinds() -> str:
    """Right of all at first sight, for each kind of model."""
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for batch in BATCHES:
        for row in _held(batch, "first"):
            found[row["kind"]][row["level"]].append(not row["wrong"])
    levels = ("easy", "medium", "hard")
    lines = ["| kind | " + " | ".join(levels) + " |", "|---|---|---|---|"]
    for kind in sorted(found):
        cells = [f"{sum(found[kind][k])} of {len(found[kind][k])}" if found[kind][k] else "" for k in levels]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def held_out_wrong() -> str:
    """Each held-out model of which something was wrong at first sight, and whether it is now."""
    lines = ["| model | truth | said at first | wrong in | now |", "|---|---|---|---|---|"]
    for batch in BATCHES:
        now = {row["case"]: row for row in _held(batch, "now")}
        for row in _held(batch, "first"):
            if not row["wrong"]:
                continue
            said = row["verdict"] if {"crash", "timeout"} & set(row["wrong"]) else _codes(row["said"])
            late = now.get(row["case"])
            told = (
                ""
                if late is None
                else "right"
                if not late["wrong"]
                else f"{_codes(late['said'])}: {', '.join(late['wrong'])}"
            )
            note = " (stated or read wrongly)" if "truth_was_wrong" in row else ""
            lines.append(
                f"| {batch}, {row['case']} | {_codes(row['truth'])}{note} | {said} | {', '.join(row['wrong'])} | {told} |"
            )
    return "\n".join(lines)


BLOCKS = {"by-set": by_set, "by-code": by_code, "by-kind": by_kind, "wrong": wrong, "first-sight": first_sight}
BLOCKS["reported"] = reported
BLOCKS |= {"held-out": held_out, "held-out-kinds": held_out_kinds, "held-out-wrong": held_out_wrong}
KNOWN = {"known-models": known}
