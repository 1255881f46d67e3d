"""Judge the trials of the recorded studies by today's statistics, without training. `python records/again.py [--check]`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from loopscale.transfer import Curves
from loopscale.transfer.result import compared, overall, rule_json

RECORDS = Path(__file__).resolve().parent
STUDIES = ("transfer_laptop", "transfer_demo", "own_transfer")


def judged(study: dict[str, Any]) -> dict[str, Any]:
    """The study with the verdicts, intervals and comparisons that its points give."""
    found = {rule: Curves.fit(_losses(old["points"])) for rule, old in study["rules"].items()}
    rules = {}
    for rule, old in study["rules"].items():
        new = json.loads(json.dumps(rule_json(rule, found[rule])))
        kept = {key: value for key, value in old.items() if key in ("strength", "applied")}
        rules[rule] = {**new, **kept}
    sentence = {"sentence": overall(rules)} if "sentence" in study else {}
    return {**study, **sentence, "rules": rules, "paired": json.loads(json.dumps(compared(found)))}


def _losses(points: dict[str, list[dict[str, Any]]]) -> dict[int, dict[tuple[float, int], float]]:
    return {
        int(n): {
            (point["lr"], seed): math.inf if loss is None else loss
            for point in row
            for seed, loss in enumerate(point["losses"])
        }
        for n, row in points.items()
    }


def again(record: dict[str, Any]) -> dict[str, Any]:
    """One recorded study, or a record of several."""
    if "studies" in record:
        return {**record, "studies": [judged(study) for study in record["studies"]]}
    return judged(record)


if __name__ == "__main__":
    for name in STUDIES:
        place = RECORDS / f"{name}.json"
        old = json.loads(place.read_text())
        new = again(old)
        if "--check" in sys.argv and new != old:
            raise SystemExit(f"{name} differs from what its points give: run python records/again.py")
        if new != old:
            place.write_text(json.dumps(new, indent=1) + "\n")
