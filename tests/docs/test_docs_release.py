"""A release: sdist and wheel build and pass twine, and the wheel, installed into an empty environment, runs a study."""

import json
import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    for module in ("build", "twine", "hatchling"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_twine_is_content(built):
    packages = sorted(built.iterdir())
    assert {path.suffix for path in packages} == {".whl", ".gz"}
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *packages], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_its_data_and_nothing_foreign(built):
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    for wanted in ("teaching/predictions.toml", "teaching/verdicts.json", "py.typed"):
        assert f"loopscale/{wanted}" in names
    assert all(name.startswith(("loopscale/", "loopscale-")) for name in names)
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        assert not [name for name in sdist.getnames() if "/.git/" in name or "/runs/" in name or "__pycache__" in name]


def test_the_wheel_runs_a_study_in_an_empty_environment(built, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(place)
    # The dependencies are those of this environment: installing torch again would be the whole cost of the test.
    (Path(place) / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = subprocess.run(
        [python, "-c", "import loopscale; print(loopscale.__file__)"],
        capture_output=True,
        text=True,
        env=clean,
        cwd=tmp_path,
    )
    assert where.stdout.startswith(str(home)), where.stderr
    study = [
        *("transfer", "--rules", "looped,none", "--loops", "1,2", "--seeds", "1", "--workers", "1", "--out", "study"),
        *("--data", "synthetic:copy", "--set", "train.steps=4", "--set", "model.width=32", "--json"),
    ]
    done = subprocess.run([python, "-m", "loopscale", *study], capture_output=True, text=True, env=clean, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    assert set(json.loads(done.stdout)["rules"]) == {"looped", "none"}
    assert (tmp_path / "study" / "report.html").exists()
