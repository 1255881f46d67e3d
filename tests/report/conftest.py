"""A made-up study and run, drawn once for all tests of this folder, and a browser that looks at them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_study import write_run, write_study

from loopscale.report import write_report, write_run_report

QUIET = "--no-sandbox --disable-gpu --no-first-run --disable-sync"
QUIET += " --disable-background-networking --disable-component-update"


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study folder with its page and figures."""
    folder = write_study(tmp_path_factory.mktemp("report") / "study")
    write_report(folder)
    return folder


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    """The records alone, to be damaged."""
    shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("figures", "report.html"))
    return tmp_path / "study"


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's folder with its page."""
    folder = write_run(tmp_path_factory.mktemp("report") / "run")
    write_run_report(folder)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium of the system, or the one that $CHROMIUM names."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium: install the package 'chromium' or set $CHROMIUM to one")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=QUIET.split())
        yield launched
        launched.close()
