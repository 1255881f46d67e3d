"""Kill every kind of work with SIGKILL and do it again: nothing is lost, changed or left behind.

Half the deaths come before a file operation of the work's own, chosen by lot; half at a moment after a change was seen.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from life import Life, Running, after_some_changes, lived
from tally import Tally
from world import EXPONENT, STUDY, TUNING, differing, facts

from loopscale.records import Journal
from loopscale.train import checkpoint

CLAIM = "work killed with SIGKILL and begun again ends as if nobody had killed it, and leaves nothing behind"


@dataclass(frozen=True)
class Work:
    """A command that is safe to repeat: it writes `out` in the folder where it runs."""

    arguments: Callable[[Path], list[str]]
    changes: int = 30  # changes of the folder before a death by the clock, at most
    operations: int = 120  # file operations before a death by count, at most
    ranks: int = 1
    workers: bool = False
    share: float = 1.0  # of the kills


def _train(config: str, *more: str) -> Callable[[Path], list[str]]:
    return lambda world: [
        "train",
        str(world / config),
        *(word.format(world=world) for word in more),
        "--out",
        "out",
        "--continue",
    ]


def _study(*words: str) -> Callable[[Path], list[str]]:
    return lambda world: [*(word.format(world=world) for word in words), "--workers", "1", "--out", "out"]


PREPARE = ["data", "prepare", "--shard-tokens", "9000", "--tokenizer", "bpe", "--vocab-size", "300"]

WORKS = {
    "train, random order": Work(_train("random.toml"), operations=600),
    "train, epochs": Work(_train("epochs.toml"), operations=600),
    "train, stream": Work(_train("stream.toml"), operations=600),
    "train, user model": Work(_train("random.toml", "--model", "{world}/mine.py:make_model"), operations=600),
    "train, 2 ranks": Work(_train("random.toml"), operations=300, ranks=2, share=0.6),
    "study": Work(_study("transfer", *STUDY)),
    "study, worker processes": Work(_study("transfer", *STUDY), workers=True, share=0.25),
    "tuning": Work(_study("tune", "{world}/short.toml", *TUNING)),
    "exponent": Work(_study("exponent", *EXPONENT)),
    "data prepare": Work(lambda world: [*PREPARE, str(world / "texts"), "--out", "out"], 12, 80),
    "export": Work(lambda world: ["export", str(world / "run"), "out"], 5, 40),
}


@dataclass(frozen=True)
class Bounds:
    """So many tries, until then."""

    tries: int
    until: float

    @classmethod
    def of(cls, tally: Tally, share: float) -> Bounds:
        """A share of the tries and of the time that are left."""
        now = time.monotonic()
        tries = round(share * (tally.count - tally.tried.total()))
        return cls(max(1, tries), now + share * (tally.began + tally.seconds - now))

    def over(self, tally: Tally, name: str) -> bool:
        return tally.tried[name] >= self.tries or time.monotonic() > self.until


def run(world: Path, tally: Tally, names: list[str] | None = None) -> None:
    """Kill each kind of work its share of the times."""
    chosen = {name: work for name, work in WORKS.items() if names is None or name in names}
    left = sum(work.share for work in chosen.values())
    for name, work in reversed(chosen.items()):
        _killed_again_and_again(world, tally, name, work, Bounds.of(tally, work.share / left))
        left -= work.share


def _killed_again_and_again(world: Path, tally: Tally, name: str, work: Work, bounds: Bounds) -> None:
    draw, log = Random(name), world / "log"
    whole = world / "whole" / name.replace(" ", "-")
    whole.mkdir(parents=True)
    code, said = lived(Life(work.arguments(world), whole, workers=work.workers), log, work.ranks)
    if code != 0:
        return tally.fault(f"{name}: undisturbed it ends with {code}: {said[-400:]}")
    truth, rounds = facts(whole), 0
    while not bounds.over(tally, name):
        place = world / "killed" / f"{name.replace(' ', '-')}-{rounds}"
        place.mkdir(parents=True)
        rounds += 1
        before = progress(place / "out")
        while True:
            by_count = draw.random() < 0.5 and not bounds.over(tally, name)
            die_at = draw.randint(1, draw.choice([10, work.operations])) if by_count else 0
            running = Running(Life(work.arguments(world), place, die_at, work.workers), log, work.ranks)
            if not by_count and not bounds.over(tally, name):
                after_some_changes(running, draw, draw.choice([0, 3, work.changes]))
                running.kill()
            code = running.wait()
            if code == 0:
                break
            if code != -9:
                return tally.fault(
                    f"{name}: after {tally.tried[name]} kills it ends with {code}: {running.said[-400:]}"
                )
            tally.tried[name] += 1
            now = progress(place / "out")
            if now[: len(before)] != before:
                return tally.fault(f"{name}: {before[-3:]} became {now[-3:]}")
            before = now
        if wrong := differing(facts(place), truth):
            tally.fault(f"{name}: after kills another result, or something left: {wrong}")
        shutil.rmtree(place)
    print(f"{name}: {tally.tried[name]} kills in {rounds} rounds", flush=True)


def progress(out: Path) -> list[Any]:
    """What must never go back: the trials of a study, the newest whole checkpoint of a run."""
    done: list[Any] = []
    if (out / "trials.jsonl").exists():
        done += [(key, trial.loss) for key, trial in Journal(out).trials.items()]
    if (out / "checkpoints").exists():
        listed = checkpoint.listed(out / "checkpoints")
        newest = max((checkpoint.step_of(path) for path in listed if not checkpoint.damage(path)), default=0)
        done += list(range(newest))
    return done
