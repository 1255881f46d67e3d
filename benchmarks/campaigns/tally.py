"""What a campaign tried and what it found; one record holds the last run of each campaign."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from loopscale.files import write_json
from loopscale.train import provenance

RECORD = Path(__file__).resolve().parents[2] / "records" / "unbreakable.json"


@dataclass
class Tally:
    """Counts by kind, faults in words, and the bounds: so many tries, so many seconds."""

    claim: str
    count: int
    seconds: float
    tried: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def over(self, kind: str | None = None, most: int | None = None) -> bool:
        """Whether enough was tried, or the time is up."""
        done = self.tried.total() if kind is None else self.tried[kind]
        return done >= (self.count if most is None else most) or time.monotonic() - self.began > self.seconds

    def fault(self, said: str) -> None:
        """Note what did not hold."""
        self.faults.append(" ".join(said.split())[:600])
        print("FAULT", self.faults[-1], flush=True)

    def keep(self, name: str, path: Path = RECORD) -> None:
        """Write it beside the other campaigns of the record."""
        record = json.loads(path.read_text()) if path.exists() else {"campaigns": {}}
        record["campaigns"][name] = {
            "claim": self.claim,
            "tried": self.tried.total(),
            "by": dict(sorted(self.tried.items())),
            "faults": self.faults,
            **({"measured": self.measured} if self.measured else {}),
            "seconds": round(time.monotonic() - self.began),
        }
        record["campaigns"][name]["commit"] = provenance()["commit"]
        write_json(path, {"campaigns": dict(sorted(record["campaigns"].items())), "provenance": provenance()})
