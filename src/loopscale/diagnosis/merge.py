"""One finding for each code: the same trouble in several loops or layers is said once, at its worst, for all places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loopscale.diagnosis.diagnosis import SEVERITIES, Finding


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Return the worst first; of each code the worst, its `where` naming all places.

    `norm-bounded` is said of a loop: beside one that is not, it is still said, with its place.
    """
    kept: dict[str, Finding] = {}
    for finding in findings:
        known = kept.get(finding.code)
        if known is None:
            kept[finding.code] = finding
            continue
        worse = max(known, finding, key=lambda f: SEVERITIES.index(f.severity))
        kept[finding.code] = replace(worse, where=_places(known.where, finding.where))
    return sorted(kept.values(), key=lambda f: -SEVERITIES.index(f.severity))


def _places(first: str, second: str) -> str:
    return first if second in first.split("; ") else f"{first}; {second}"
