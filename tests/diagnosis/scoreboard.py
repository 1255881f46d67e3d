"""Diagnose every labelled model of the tests and write what was said beside the truth.

python tests/diagnosis/scoreboard.py [PART OF A NAME ...] [--out records/diagnosis_scoreboard.json]
needs: transformers, x-transformers; a quarter of an hour on one core. With names only those cases are run again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from loopscale.diagnosis import diagnose
from loopscale.train import provenance

sys.path.insert(0, str(Path(__file__).parent))
from truths import everything

ROOT = Path(__file__).resolve().parents[2]


def scored(group: str, case: str, truth: Any, build: Any) -> dict[str, Any]:
    """One row: truth, what was said, the fields that are wrong; a crash is said as such."""
    row = {"set": group, "case": case, "kind": truth.kind, "hard": truth.hard, "truth": sorted(truth.codes)}
    if truth.other is not None:
        row["or"] = sorted(truth.other)
    torch.manual_seed(0)
    try:
        found = diagnose(*build())
    except Exception as error:
        return {**row, "said": [], "wrong": ["crash"], "verdict": f"{type(error).__name__}: {error}"[:200]}
    return {
        **row,
        "said": sorted(found.codes),
        "wrong": truth.wrong(found),
        "verdict": found.verdict.partition(" (")[0],
    }


def reported_as(case: str) -> str:
    """What the diagnosis did when a failure was reported, by the first words of its file: CRASH, FALSE ALARM."""
    module = importlib.import_module(f"cases.{case.partition(':')[0]}")
    words = re.match(r"[A-Z]{3}[A-Z ]*(\([a-z]+\))?", module.__doc__ or "")
    return words.group().strip().lower() if words else ""


def main() -> None:
    """Run all, or those whose name has one of the words; the other rows are kept. What was run is written at once."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("names", nargs="*")
    asked.add_argument("--out", type=Path, default=ROOT / "records" / "diagnosis_scoreboard.json")
    given = asked.parse_args()
    before = json.loads(given.out.read_text()) if given.out.exists() else {"cases": []}
    rows = {(r["set"], r["case"]): r for r in before["cases"]}
    asked_for = {(group, case): (truth, build) for group, case, truth, build in everything()}
    for (group, case), (truth, build) in asked_for.items():
        old = rows.get((group, case), {})
        if old and given.names and not any(word in case for word in given.names):
            continue
        row = scored(group, case, truth, build) | {k: v for k, v in old.items() if k == "first"}
        if group == "reported failures":
            row["was"] = reported_as(case)
        rows[group, case] = row
        cases = [rows[place] for place in asked_for if place in rows]
        given.out.write_text(json.dumps(before | {"provenance": provenance(), "cases": cases}, indent=1) + "\n")
        print(
            f"{'right' if not row['wrong'] else 'WRONG'} {group}, {case}: {', '.join(row['said']) or '-'}", flush=True
        )


if __name__ == "__main__":
    main()
