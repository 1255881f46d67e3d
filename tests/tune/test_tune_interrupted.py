"""Ctrl-C, SIGTERM and SIGKILL in the middle of tuning and verifying: what ended never runs again, the rest does."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import loopscale
from loopscale.records import Journal

LONG = 600  # seconds that a machine busy with other things may take

SLOW = """
import math, os, pathlib, time
from loopscale.files import write_text

def objective(values):
    time.sleep(float(os.environ.get("WAIT", "0.4")))
    rate, strength = math.log2(values["lr"]) + 7.3, math.log2(values["residual_scale"] * values["loops"] / 0.6)
    loss = 2 + 0.05 * rate**2 + 0.03 * strength**2 + 0.002 * math.sin(values["seed"] * 31 + rate * 50)
    point = f"{values['loops']} {values['lr']} {values['strength']} {values['seed']}"
    with open(pathlib.Path(__file__).with_name("calls.txt"), "a") as calls:
        calls.write(point + "\\n")
    return loss
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "slow_one.py").write_text(SLOW)
    (tmp_path / "small.toml").write_text("[model]\nwidth = 64\nlayers = 1\n[optim]\nlr = 0.0078125\n")
    return tmp_path


def start(place, *arguments, wait):
    command = [sys.executable, "-m", "loopscale", *arguments, "--workers", "2"]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    environment = {**os.environ, "WAIT": wait, "PYTHONPATH": str(Path(loopscale.__file__).parents[1])}
    # A background job of a shell ignores Ctrl-C, and so would all that it starts.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=place, env=environment, preexec_fn=heard, **quiet)


def tuning(place, wait="0.4"):
    size = ["--target", "loops=32", "--trials", "12", "--seeds", "2", "--out", "t"]
    return start(place, "tune", "small.toml", "--objective", "slow_one.py:objective", *size, wait=wait)


def verifying(place, wait="0.4"):
    return start(
        place,
        "verify",
        "t",
        "--objective",
        "slow_one.py:objective",
        "--loops",
        "4,8",
        "--share",
        "9",
        "--seeds",
        "2",
        wait=wait,
    )


def records(place, kind):
    return Journal(place / "t", kind).trials


def calls(place):
    file = place / "calls.txt"
    return collections.Counter(file.read_text().splitlines()) if file.exists() else collections.Counter()


def point(record):
    cell = record.cell
    return f"{cell.loops} {cell.lr} {cell.strength} {cell.seed}"


def stop_after(process, place, kind, more, number):
    """Wait for some more trials to end, then send the signal, as a terminal does: to everybody."""
    wanted, deadline = len(records(place, kind)) + more, time.monotonic() + LONG
    while len(records(place, kind)) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    said = process.communicate(timeout=LONG)[1]
    assert process.returncode != 0 and "Traceback" not in said, said
    return said


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_tuning_and_its_verification_survive_an_interruption(place, number):
    for kind, begin, more in (("trials", tuning, 4), ("verify", verifying, 3)):
        process = begin(place)
        stop_after(process, place, kind, more, number)
        deadline = time.monotonic() + LONG
        while alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(process.pid), "workers outlived the study"
        kept, ran = records(place, kind), calls(place)
        assert len(kept) >= more
        done = begin(place, wait="0")
        said = done.communicate(timeout=LONG)
        assert done.returncode in ((0,) if kind == "trials" else (0, 1)), said
        now = calls(place) - ran
        assert not {point(record) for record in kept.values()} & set(now), "a finished trial ran again"
        assert all(records(place, kind)[path] == record for path, record in kept.items())
        assert len(records(place, kind)) > len(kept)
    explored = [record for record in records(place, "trials").values() if record.cell.explored]
    assert len(explored) == 12


@pytest.mark.slow
def test_many_kills_at_any_moment_lose_nothing(place):
    """Ten deaths at moments that nobody chose, then the same plan as without."""
    journal = place / "t" / "trials.jsonl"
    for _ in range(10):
        before = journal.stat().st_size if journal.exists() else 0
        process = tuning(place, wait="0.1")
        deadline = time.monotonic() + LONG
        while not journal.exists() or journal.stat().st_size == before:  # from its first trial on
            assert time.monotonic() < deadline
            if process.poll() is not None:
                break
            time.sleep(0.005)
        process.kill()
        process.communicate()
    last = tuning(place, wait="0")
    said = last.communicate(timeout=LONG)
    assert last.returncode == 0, said
    explored = [record for record in records(place, "trials").values() if record.cell.explored]
    assert len(explored) == 12
    plan = json.loads((place / "t" / "plan.json").read_text())
    assert plan["proxy"]["values"]["lr"] == pytest.approx(2**-7.3, rel=0.3)
