"""One self-contained page from template, style, scripts and records: `python docs/playground/build.py [FOLDER]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from loopscale import RULES, Depth, Role, UserError
from loopscale.files import replacing

HERE = Path(__file__).resolve().parent
RECORDS = HERE.parents[1] / "records"
MAKES = {
    "transfer_laptop.json": "loopscale transfer --preset laptop",
    "paper/01.json": "python papers/residual_scaling 1",
    "paper/07.json": "python papers/residual_scaling 7",
}


def build(folder: Path) -> Path:
    """Write playground.html into the folder; raises `UserError` naming the command that makes a missing record."""
    page = (HERE / "template.html").read_text(encoding="utf-8")
    parts = {
        "/*STYLE*/": (HERE / "style.css").read_text(encoding="utf-8"),
        "/*DATA*/": f"const RULES = {_json(_rules())}, RECORDED = {_json(_recorded())};",
        "/*MATHS*/": (HERE / "maths.js").read_text(encoding="utf-8"),
        "/*TRAINER*/": (HERE / "trainer.js").read_text(encoding="utf-8"),
        "/*PAGE*/": (HERE / "page.js").read_text(encoding="utf-8"),
    }
    for mark, text in parts.items():
        page = page.replace(mark, text)
    path = folder / "playground.html"
    with replacing(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _rules() -> dict[str, Any]:
    """Exponents of the pre-norm rules; the power of L in the hidden rate is read off the rule itself."""
    found = {}
    for name, rule in RULES.items():
        if rule.keeps_start:
            rate = rule.for_role(Role.HIDDEN, Depth(1, 4)).lr.value
            found[name] = {
                "loops_exponent": rule.loops_exponent,
                "layers_exponent": rule.layers_exponent,
                "rate_loops_exponent": rule.rate_loops_exponent,
                "rate_layers": {1.0: 0.0, 0.5: -0.5, 2.0: 0.5, 0.25: -1.0}[rate],
                "summary": rule.summary,
            }
    return found


def _recorded() -> dict[str, Any]:
    """Read the curves of the laptop study, the alignment of visits and the one-step change, with where they come from."""
    study = _read("transfer_laptop.json")
    curves = {
        rule: {n: [[p["lr"], p["loss"]] for p in points if p["loss"]] for n, points in found["points"].items()}
        for rule, found in study["rules"].items()
    }
    optima = {r: {n: [o["lr"], o["loss"]] for n, o in f["optima"].items()} for r, f in study["rules"].items()}
    origin = study["provenance"]
    return {
        "curves": curves,
        "optima": optima,
        "sentences": {rule: found["sentence"] for rule, found in study["rules"].items()},
        "setting": f"{len(origin['seeds'])} seeds, {origin['trials']} trainings, torch {origin['torch']}",
        "alignment": _lines("paper/01.json"),
        "change": _lines("paper/07.json"),
    }


def _lines(name: str) -> dict[str, list[list[float]]]:
    lines = _read(name)["figure"]["lines"]
    return {
        line["label"]: [
            [at, sum(column) / len(column)] for at, column in zip(line["x"], zip(*line["y"], strict=True), strict=True)
        ]
        for line in lines
    }


def _read(name: str) -> Any:
    path = RECORDS / name
    if not path.exists():
        raise UserError(f"records/{name} is missing: {MAKES[name]} makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
