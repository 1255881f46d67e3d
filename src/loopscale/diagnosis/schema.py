"""The written schema of a diagnosis as JSON: what `--json` prints and `diagnosis.json` holds."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from loopscale.findings import FINDINGS


def diagnosis_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) that every diagnosis keeps to; fields are only ever added within one number.

    >>> diagnosis_schema()["properties"]["schema"]["const"]
    1
    """
    text = files("loopscale.diagnosis").joinpath("schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    codes = found["properties"]["findings"]["items"]["properties"]["code"]
    codes["enum"] = [row.code for row in FINDINGS]
    return found
