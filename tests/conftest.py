"""Shared by all tests: one thread, no clock for hypothesis, a browser, and a token cache that is not the user's."""

from __future__ import annotations

import os
import re
import shlex
import signal

import pytest
from browsing import launched
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")  # else its import closes every log handler of this process
settings.register_profile("events", deadline=None)  # a loaded machine is slow, not wrong
settings.load_profile("events")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Pack tokens into a folder of this session (or the one CI names)."""
    os.environ.setdefault("LOOPSCALE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def one_thread():
    """Threads fight at test sizes."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def parsed():
    """Find the command lines in a text, from `loopscale` to the end of the line, and parse each as the command would.

    Gives (name of the command, its parameters) of each; a line that the command does not take raises click's error.
    """
    from loopscale.cli import group

    def parse(text):
        found = []
        for line in re.findall(r"loopscale (?:transfer|exponent|tune|verify|train|scale) .*", text):
            name, *words = shlex.split(line)[1:]
            command = group.get_command(None, name)
            found.append((name, command.make_context(name, words).params))
        return found

    return parse


@pytest.fixture
def inline(monkeypatch, in_this_process):
    """Run the trials of commands in this process: starting others takes longer than trials of tests."""
    in_this_process(monkeypatch)


@pytest.fixture(scope="session")
def in_this_process():
    """Give what `inline` does to a patch, for fixtures that live longer than a test."""
    import loopscale.study

    class Inline(loopscale.study.InThisProcess):
        def __init__(self, workers=None, gpus=0.0):
            pass

    return lambda patch: patch.setattr(loopscale.study, "LocalProcesses", Inline)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium for all tests of a worker."""
    with launched() as chromium:
        yield chromium


@pytest.fixture
def killer():
    """An observer that kills one Ray worker when the first trial ends; `killed` holds its process id."""
    import subprocess
    import time

    from loopscale.study import Silent

    class KillOne(Silent):
        def __init__(self):
            self.killed = []

        def ended(self, record, finished, left):
            while not self.killed:
                found = subprocess.run(["pgrep", "-f", "ray::_trial"], capture_output=True, text=True).stdout.split()
                if found:
                    self.killed.append(int(found[0]))
                    os.kill(self.killed[0], signal.SIGKILL)
                time.sleep(0.02)

    return KillOne()
