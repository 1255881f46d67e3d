"""Watching a tuning while trials end: the page on loopback in a real browser, the terminal, optuna-dashboard."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from browsing import PATIENCE

import loopscale
from loopscale.cli.display import table
from loopscale.cli.serving import make_server
from loopscale.records import Journal, Trial

FILE = Path(__file__).parent / "valley.py"
pytestmark = pytest.mark.slow


@pytest.fixture
def tuning(tmp_path):
    """A tuning that has begun and is held until the test, which looks at it, removes the file `hold`."""
    (tmp_path / "small.toml").write_text("[model]\nwidth = 64\nlayers = 1\n[optim]\nlr = 0.0078125\n")
    place = ["--objective", f"{FILE}:slow", "--target", "loops=16", "--trials", "25", "--seeds", "2", "--workers", "1"]
    place += ["--storage", f"sqlite:///{tmp_path}/trials.db"]
    command = [sys.executable, "-m", "loopscale", "tune", "small.toml", *place, "--out", "t"]
    environment = {**os.environ, "PYTHONPATH": str(Path(loopscale.__file__).parents[1])}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: Journal(tmp_path / "t").trials)
        (tmp_path / "hold").touch()
        yield tmp_path / "t", process
    finally:
        process.kill()
        process.communicate()


def wait_for(what, seconds=300):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.mark.browser
def test_the_live_page_grows_by_itself_and_ends_with_the_plan(tuning, browser):
    folder, process = tuning
    with make_server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        rows = page.locator("tbody tr")
        first = rows.count()
        (folder.parent / "hold").unlink()
        page.wait_for_function(f"document.querySelectorAll('tbody tr').length > {first}")
        process.wait(timeout=600)
        page.wait_for_selector("text=Tuned at N = 1")
        assert page.locator("h1").text_content() == "Tuning t"
        page.click("text=The finished report")
        page.wait_for_selector("html[data-ready]")
        page.close()
        server.shutdown()


def test_optuna_dashboard_opens_the_mirror_while_it_grows(tuning):
    pytest.importorskip("optuna_dashboard")
    folder, process = tuning
    command = [
        Path(sys.executable).with_name("optuna-dashboard"),
        f"sqlite:///{folder.parent}/trials.db",
        "--host",
        "127.0.0.1",
    ]
    dashboard = subprocess.Popen([*command, "--port", "8977"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:8977{path}", timeout=600).read().decode()
        except OSError:
            return ""

    try:
        wait_for(lambda: "loopscale-" in ask("/api/studies"))
        assert process.poll() is None, "it was looked at while it went on"
        studies = {s["study_name"]: s["study_id"] for s in json.loads(ask("/api/studies"))["study_summaries"]}
        explored = studies[min(studies, key=len)]

        def ended():
            trials = json.loads(ask(f"/api/studies/{explored}?after=0"))["trials"]
            return sum(trial["state"] == "Complete" for trial in trials)

        before = ended()
        (folder.parent / "hold").unlink()
        wait_for(lambda: ended() > before)
        assert "<html" in ask("/dashboard/").lower()
        process.communicate(timeout=600)
        assert process.returncode == 0 and ended() >= 25
    finally:
        dashboard.terminate()
        dashboard.wait()


def test_the_terminal_shows_the_best_trials_and_the_last():
    from rich.console import Console

    def trial(loss, seed, **other):
        cell = {"rule": "looped", "loops": 1, "seed": seed, "values": {"lr": 0.01, "strength": 1.0}, "lr": 0.01}
        return Trial(cell=cell, loss=loss, diverged=loss is None, **other)

    trials = [trial(2.0 + seed / 100, seed) for seed in range(12)]
    trials += [trial(None, 12, stopped=True), trial(None, 13, error="RuntimeError: no")]
    screen = Console(file=io.StringIO(), width=100)
    screen.print(table("tuning at N = 1: 14 trials, 3 s", trials[:8], trials[-1]))
    lines = screen.file.getvalue().splitlines()
    assert lines[0] == "tuning at N = 1: 14 trials, 3 s"
    assert [bool(re.search(rf"│\s+{rank} │", line)) for rank, line in zip(range(1, 9), lines[4:], strict=False)] == [
        True
    ] * 8
    assert "2.0700" in lines[11] and "last" in lines[12] and "raised" in lines[12]
