"""Every command on paths that it may not read or write: one sentence, nothing half written.

It is run by root, who gives up a superuser's rights in each life: files of others' are then what they are to a user.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from kills import WORKS
from life import Life, lived, picture
from tally import Tally

CLAIM = "on paths without permission every command ends with one sentence, exit 2, and leaves nothing half written"

NOBODY = 65534
READERS = {
    "report a run": ["report", "run"],
    "report a study": ["report", "study"],
    "report an exponent": ["report", "exponent"],
    "report a tuning": ["report", "tuning"],
    "generate": ["generate", "run", "--prompt", "the", "--tokens", "3"],
    "track": ["track", "run", "--to", "tensorboard"],
    "diagnose a run": ["diagnose", "run"],
    "diagnose a file": ["diagnose", "mine.py:make_model", "--out", "diagnosis"],
    "verify data": ["data", "verify", "tokens"],
    "verify a tuning": ["verify", "tuning", "--loops", "2", "--share", "9", "--workers", "1"],
    "plan": ["plan", "short.toml"],
    "resume": ["train", "--resume", "run", "--set", "train.steps=6"],
    "evaluate": ["evaluate", "run", "--tasks", "task"],
    "convert": ["convert", "exported", "converted", "--loops", "2"],
    "init from": ["train", "short.toml", "--init-from", "run", "--out", "out"],
    "tuned": ["train", "short.toml", "--from", "tuning/tuned.toml", "--out", "out"],
}
INPUTS = ("run", "study", "exponent", "tuning", "tokens", "texts", "exported", "mine.py", "short.toml", "random.toml")


def run(world: Path, tally: Tally, names: list[str] | None = None) -> None:
    """Shut each command's paths in every way."""
    source, draw, log = _source(world, tally), Random(0), world / "log"
    commands = READERS | {name: work.arguments(Path("here")) for name, work in WORKS.items() if work.ranks == 1}
    while not tally.over():
        for name, words in commands.items():
            for way, shut in WAYS.items():
                if tally.over() or (names is not None and name not in names):
                    continue
                place = world / "place"
                shutil.copytree(source, place)
                line = [word.replace("here/", "") for word in words]
                shut(place, line, draw)
                before = picture(place)
                life = Life(line, place, powerless=True, environment={"HOME": "/"})
                code, said = lived(life, log)
                tally.tried[way] += 1
                tally.measured[f"exit {code}"] = tally.measured.get(f"exit {code}", 0) + 1
                last = (said.strip().splitlines() or [""])[-1]
                where = f"{name} ({way}): exit {code}"
                if code not in (0, 1, 2) or "Traceback" in said or "mistake of loopscale" in said:
                    tally.fault(f"{where}: {said[-500:]}")
                elif code == 2 and not (last.startswith("loopscale: ") and len(last) <= 315):
                    tally.fault(f"{where}: {last}")
                elif code == 2 and (new := [file for file in picture(place) if file not in before]):
                    tally.fault(f"{where}: leaves {new} after {last}")
                shutil.rmtree(place)


def _source(world: Path, tally: Tally) -> Path:
    """A folder with one of everything."""
    place, log = world / "source", world / "log"
    place.mkdir()
    for name in ("run", "tokens", "texts"):
        shutil.copytree(world / name, place / name)
    for name in ("mine.py", "short.toml", "random.toml", "epochs.toml", "stream.toml"):
        (place / name).write_text((world / name).read_text().replace(f"{world}/", ""))
    for name in ("study", "tuning", "exponent", "export"):
        line = [word.replace("here/", "") for word in WORKS[name].arguments(Path("here"))]
        code, said = lived(Life(line, place), log)
        if code != 0:
            tally.fault(f"{name}: with permission it ends with {code}: {said[-400:]}")
        (place / "out").rename(place / ("exported" if name == "export" else name))
    return place


def _new(place: Path, before: list[tuple[str, int]]) -> list[str]:
    """What was written, but for locks, which stay."""
    return [name for name, size in picture(place) if (name, size) not in before and not name.endswith(".lock")]


def _nothing_to_write(place: Path, line: list[str], draw: Random) -> None:
    """Everything can be read, nothing written."""
    _given_away(place)


def _unreadable_input(place: Path, line: list[str], draw: Random) -> None:
    for name in INPUTS:
        (place / name).chmod(0o000)


def _unreadable_file(place: Path, line: list[str], draw: Random) -> None:
    named = [place / word.partition(":")[0] for word in line if word]
    files = [file for path in named if path.is_dir() for file in path.rglob("*") if file.is_file()]
    files += [path for path in named if path.is_file()]
    for file in draw.sample(sorted(files), min(2, len(files))):
        file.chmod(0o000)


def _folder_shut(place: Path, line: list[str], draw: Random) -> None:
    (place / "out").mkdir()
    (place / "out").chmod(draw.choice([0o000, 0o555]))


def _output_of_another(place: Path, line: list[str], draw: Random) -> None:
    """What is continued or written over is there, belongs to somebody else and can be read."""
    kind = "tuning" if line[0] == "tune" else {"transfer": "study", "exponent": "exponent", "train": "run"}.get(line[0])
    if kind is not None:
        shutil.copytree(place / kind, place / "out")
        _given_away(place / "out")
    for name in ("run", "study", "exponent", "tuning"):
        _given_away(place / name)


def _given_away(path: Path) -> None:
    for one in (path, *path.rglob("*")):
        os.chown(one, NOBODY, NOBODY)


WAYS: dict[str, Callable[[Path, list[str], Random], None]] = {
    "nothing can be written": _nothing_to_write,
    "no input can be read": _unreadable_input,
    "one file cannot be read": _unreadable_file,
    "the folder is shut": _folder_shut,
    "the output is somebody else's": _output_of_another,
}
