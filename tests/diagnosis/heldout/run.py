"""Diagnose the held-out models by the command, each in a process of its own, and write what was said beside the truth.

python tests/diagnosis/heldout/run.py BATCH [part of a name ...] [--sight now] [--jobs 2]
The truths were committed before the first diagnosis of their batch. The first sight of a case is written once and stays; later runs are
written as `now`. Where a truth turned out wrong, `corrections.toml` says why; the original stays, and both are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from loopscale.findings import BY_CODE
from loopscale.train import provenance

sys.path.insert(0, str(Path(__file__).parents[1]))
from heldout.measure import modules

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RECORD = ROOT / "records" / "diagnosis_heldout.json"

Row = dict[str, Any]
STATED = ("codes", "other", "others", "may", "law", "loops", "layers", "place", "mend")


def severe(codes: list[str]) -> bool:
    return any(BY_CODE[code].severity != "info" for code in codes)


def command(*arguments: str, seconds: int = 150) -> tuple[int, str, str, float]:
    """Exit status, output, errors and CPU seconds of `loopscale` with these arguments; negative when it takes more CPU."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        line = [str(Path(sys.executable).with_name("loopscale")), *arguments]
        child = subprocess.Popen(
            line,
            stdout=out,
            stderr=err,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds)),
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        return child.returncode, out.read(), err.read(), used.ru_utime + used.ru_stime


def mentions(group: str, path: Path, text: str) -> bool:
    """Whether one of the alternatives stands in the text: a piece of source as `file.py:LINE`, a module by its name."""
    lines = path.read_text().splitlines()
    words = re.split(r"[\s,;'`()\[\]]+", text)
    for part in group.split("|"):
        numbers = [i for i, line in enumerate(lines, 1) if part in line]
        if any(re.search(rf"{re.escape(path.name)}:{i}\b", text) for i in numbers):
            return True
        if any(f".{part}." in f".{word}." for word in words):
            return True
    return False


def compared(truth: Row, path: Path, said: Row, status: int, fixed: str | None) -> list[str]:
    """The fields that differ from the truth: `other` and `others` are as right as `codes`, `may` may be said or not."""
    codes = [f["code"] for f in said["findings"]]
    told = sorted(code for code in codes if code not in truth.get("may", []))
    accepted = [truth["codes"], truth.get("other", truth["codes"]), *truth.get("others", [])]
    right = next((a for a in accepted if sorted(a) in (sorted(codes), told)), None)
    wrong = ["codes"] if right is None else []
    wrong += ["exit"] if (status == 1) != severe(truth["codes"] if right is None else right) else []
    wrong += ["loops"] if truth.get("loops") not in (None, said["loops"]) else []
    wrong += (
        ["layers"] if truth.get("layers") is not None and said["looped"] and said["layers"] != truth["layers"] else []
    )
    wrong += ["law"] if truth.get("law") not in (None, said["growth"]) else []
    for code, groups in truth.get("place", {}).items():
        text = " ".join(" ".join(map(str, f.values())) for f in said["findings"] if f["code"] == code)
        if code in codes and not all(mentions(group, path, text) for group in groups):
            wrong.append("place")
            break
    if truth.get("mend") and "codes" not in wrong:
        tried = any("then no finding" in f.get("tried", "") and f.get("lines") for f in said["findings"])
        if not tried or (truth["mend"] == "attach" and fixed != "no finding"):
            wrong.append("mend")
    symptoms = said["details"].get("symptoms", [])
    measured = not severe(truth["codes"]) and all(s["value"] is not None and not s["beyond"] for s in symptoms)
    return [*wrong, *(["healthy"] if said["verdict"].startswith("healthy") and not measured else [])]


def case(path: Path, name: str, truth: Row) -> Row:
    target = f"{path}:{name}"
    began = time.monotonic()
    status, out, err, cpu = command("diagnose", "--model", target, "--json")
    row: Row = {"case": f"{path.stem}:{name}", "kind": truth["kind"], "level": truth["level"]}
    row |= {"truth": {k: truth[k] for k in STATED if k in truth}, "cpu_s": round(cpu, 1)}
    row["wall_s"] = round(time.monotonic() - began, 1)
    if status not in (0, 1) or "Traceback" in err:
        told = (err.strip() or f"exit {status}").splitlines()[-1]
        return {**row, "said": [], "verdict": told[:300], "wrong": ["timeout" if status < 0 else "crash"]}
    said = json.loads(out)
    row |= {"said": sorted(f["code"] for f in said["findings"]), "verdict": said["verdict"]}
    row |= {"found": {k: said[k] for k in ("loops", "layers", "growth", "gain", "growth_over_loops", "loops_argument")}}
    row["tried"] = sorted({f["tried"] for f in said["findings"] if f.get("tried")})
    fixed = None
    if truth.get("mend") == "attach":
        _, out, err, more = command("diagnose", "--model", target, "--fix", "--json")
        row["cpu_fix_s"] = round(more, 1)
        try:
            left = [f["code"] for f in json.loads(out)["findings"]]
            fixed = "no finding" if not left else ", ".join(left)
        except ValueError:
            fixed = (err.strip() or "no output").splitlines()[-1][:300]
        row["fixed"] = fixed
    row["wrong"] = compared(truth, path, said, status, fixed)
    return row


def corrected(row: Row, better: Row | None) -> Row:
    """The row with what is wrong in it by the corrected truth, beside what is wrong by the stated one."""
    row = {key: value for key, value in row.items() if key not in ("truth_was_wrong", "corrected", "wrong_corrected")}
    if better is None or "found" not in row:
        return row
    said = {"codes": row["said"], "law": row["found"]["growth"], **row["found"]}
    truth = {key: value for key, value in better.items() if key not in ("why", "settles")}
    settled = {key for key, value in truth.items() if value == said[key]}
    settled |= {"exit", "healthy", *better.get("settles", [])} if "codes" in settled else set(better.get("settles", []))
    wrong = [field for field in row["wrong"] if field not in settled]
    return row | {"truth_was_wrong": better["why"], "corrected": truth, "wrong_corrected": wrong}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("batch")
    asked.add_argument("names", nargs="*")
    asked.add_argument("--sight", choices=("first", "now"), default="now")
    asked.add_argument("--jobs", type=int, default=2)
    given = asked.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"provenance": {}, "batches": {}}
    batch = record["batches"].setdefault(given.batch, {})
    sight = batch.setdefault(given.sight, {"provenance": None, "cases": []})
    known = {row["case"]: row for row in sight["cases"]}
    file = HERE / "corrections.toml"
    corrections = tomllib.loads(file.read_text()).get(given.batch, {}) if file.exists() else {}
    todo = []
    for path, module in modules(given.batch):
        for name, truth in module.TRUTHS.items():
            label = f"{path.stem}:{name}"
            if given.names and not any(word in label for word in given.names):
                continue
            if given.sight == "first" and label in known:
                continue
            todo.append((path, name, truth))
    with ThreadPoolExecutor(given.jobs) as pool:
        for row in pool.map(lambda job: case(*job), todo):
            known[row["case"]] = row
            print(
                f"{'right' if not row['wrong'] else 'WRONG ' + ' '.join(row['wrong'])} {row['case']}: {', '.join(row['said'])} | {row['cpu_s']} s | {row['verdict']}",
                flush=True,
            )
            record["provenance"] = provenance()
            sight |= {"provenance": record["provenance"], "cases": [known[key] for key in sorted(known)]}
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
    for one in batch.values():
        one["cases"] = [corrected(row, corrections.get(row["case"])) for row in one["cases"]]
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
