"""A made-up study and run, drawn once for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_study import write_run, write_study

from loopscale.report import write_report, write_run_report


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
