"""Shared by all tests: one thread, no clock for hypothesis, a browser, and a token cache that is not the user's."""

from __future__ import annotations

import os

import pytest
from browsing import launched
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
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
def inline(monkeypatch):
    """Run the trials of commands in this process: starting others takes longer than trials of tests."""
    import loopscale.study

    class Inline(loopscale.study.InThisProcess):
        def __init__(self, workers=None, gpus=0.0):
            pass

    monkeypatch.setattr(loopscale.study, "LocalProcesses", Inline)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium for all tests of a worker."""
    with launched() as chromium:
        yield chromium
