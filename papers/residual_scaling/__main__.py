"""`python papers/residual_scaling [STUDY ...] [--again]`: run the studies without a record, then draw and render."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads fight at these sizes
sys.path.insert(0, str(Path(__file__).parent))


def main() -> int:
    """Run what was asked for; 0 when every study has a record."""
    from loopscale.errors import UserError

    try:
        return run(asked())
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2


def asked() -> argparse.Namespace:
    """The studies by name, and whether to run those that have a record."""
    from studies import LONG, PREDICTIONS, STUDIES, TABLES

    known = f"predictions {min(PREDICTIONS)}..{max(PREDICTIONS)}, {', '.join(TABLES)}"
    usual = [name for name in STUDIES if name not in LONG]
    parser = argparse.ArgumentParser(prog="papers/residual_scaling", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"{known}; default: all but {' and '.join(LONG)}")
    parser.add_argument("--again", action="store_true", help="run also where there is a record")
    found = parser.parse_args()
    found.what = [f"{int(word):02d}" if word.isdecimal() else word for word in found.what] or usual
    unknown = [name for name in found.what if name not in STUDIES]
    if unknown:
        parser.error(f"there is no study {unknown[0]}: known are {known}")
    return found


def run(chosen: argparse.Namespace) -> int:
    """Run them one after another, then write all texts that follow from the records."""
    import render
    import studies

    if chosen.again:
        studies.forget(chosen.what)
    for name in dict.fromkeys(chosen.what):
        if studies.record(name).exists() and not chosen.again:
            print(f"{name}  has a record; --again runs it anew", file=sys.stderr)
            continue
        began = time.perf_counter()
        result = studies.run(name)
        said = f"{result['verdict']:<10} {result['claim']}" if "verdict" in result else result["sentence"]
        print(f"{name}  {said} ({time.perf_counter() - began:.0f} s)", flush=True)
    render.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
