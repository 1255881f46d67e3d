"""The generated command lines, configs and damages of tests/cli/test_cli_fuzz.py, each test in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tally import Tally

CLAIM = (
    "generated command lines, mutated configs and damaged files: exit 0, 1 or 2, one sentence, nothing silently other"
)
TESTS = Path(__file__).resolve().parents[2] / "tests" / "cli" / "test_cli_fuzz.py"


def run(world: Path, tally: Tally, names: list[str] | None = None) -> None:
    """Run the tests one by one, as long as there is time."""
    kept = world / "tried.json"
    for name in names or re.findall(r"^def (test_\w+)", TESTS.read_text(), flags=re.M):
        left = tally.seconds - (time.monotonic() - tally.began)
        if left < 1:
            tally.fault(f"{name}: the time was up")
            continue
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "slow",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            "--tb=short",
        ]
        environment = {**os.environ, "LOOPSCALE_FUZZ_RECORD": str(kept)}
        try:
            done = subprocess.run(
                [*command, str(TESTS), "-k", name], capture_output=True, text=True, timeout=left, env=environment
            )
        except subprocess.TimeoutExpired:
            tally.fault(f"{name}: no end within {left:.0f} s")
            continue
        if done.returncode:
            tally.fault(f"{name}: {' '.join(re.findall('^E .*', done.stdout, flags=re.M))}")
        print(f"{name}: {'faults' if done.returncode else 'held'}", flush=True)
    if kept.exists():
        tally.tried.update(json.loads(kept.read_text())["tried"])
