"""Try to break loopscale, within a count and a time. `python benchmarks/campaigns NAME... [--count N] [--seconds S]`.

Each campaign adds its row to records/unbreakable.json; `--dry` does not.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

from tally import RECORD, Tally
from world import make_world

COUNTS = {"kills": 200, "disk": 120, "permission": 150, "soak": 3000, "numerics": 800, "fuzz": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *COUNTS], default=[])
    parser.add_argument("--count", type=int, help="Tries of each; default: as the record has them.")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--only", action="append", help="Kinds within a campaign.")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    faults = 0
    for name in options.names or COUNTS:
        campaign = importlib.import_module(name)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LOOPSCALE_CACHE"] = os.environ["HOME"] = folder
            os.chmod(folder, 0o755)
            tally = Tally(campaign.CLAIM, options.count or COUNTS[name], options.seconds)
            campaign.run(make_world(Path(folder) / "world"), tally, options.only)
        print(f"{name}: {tally.tried.total()} tries, {len(tally.faults)} faults", flush=True)
        faults += len(tally.faults)
        if not options.dry:
            tally.keep(name, options.out)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
