"""`python papers/residual_scaling [NUMBER ...] [--again]`: run the studies without a record, then draw and render."""

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
    import render
    from studies import STUDIES, record, run

    parser = argparse.ArgumentParser(prog="papers/residual_scaling", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"predictions {min(STUDIES)}..{max(STUDIES)}; default: all")
    parser.add_argument("--again", action="store_true", help="run also where there is a record")
    asked = parser.parse_args()
    try:
        chosen = [int(word) for word in asked.what] or sorted(STUDIES)
    except ValueError:
        parser.error(f"predictions are numbers, got {' '.join(asked.what)}")
    unknown = [number for number in chosen if number not in STUDIES]
    if unknown:
        parser.error(f"there is no prediction {unknown[0]}: they are numbered {min(STUDIES)} to {max(STUDIES)}")
    for number in dict.fromkeys(chosen):
        if record(number).exists() and not asked.again:
            print(f"{number:>2}  has a record ({record(number).name}); --again runs it anew", file=sys.stderr)
            continue
        began = time.perf_counter()
        result = run(number)
        print(
            f"{number:>2}  {result['verdict']:<10} {result['claim']} ({time.perf_counter() - began:.0f} s)", flush=True
        )
    render.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
