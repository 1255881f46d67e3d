"""The pages and examples run as they are printed."""

import math
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.S)


def test_the_hugging_face_page_runs(tmp_path: Path):
    pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    code = "\n".join(blocks("huggingface.md")).replace("/tmp/", f"{tmp_path}/")
    assert code.count("import") >= 5
    exec(compile(code, "huggingface.md", "exec"), {})


def test_the_trackers_page_runs(capsys: pytest.CaptureFixture[str]):
    from loopscale.trackers import TRACKERS

    (code,) = blocks("trackers.md")
    try:
        exec(compile(code, "trackers.md", "exec"), {})
        TRACKERS["printed"].open(None).log(3, {"loss": 1.5})
    finally:
        TRACKERS.pop("printed", None)
    assert capsys.readouterr().out == "3 1.5\n"


def test_the_plain_loop_learns_and_can_be_tracked(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from loopscale.trackers import track_run

    main = runpy.run_path(str(ROOT / "examples" / "ecosystem" / "plain_loop.py"))["main"]
    assert main(tmp_path) < 0.7 * math.log(16)
    assert track_run(tmp_path, ["tensorboard"])[0].added == 30


def test_the_accelerate_loop_learns():
    pytest.importorskip("accelerate")
    main = runpy.run_path(str(ROOT / "examples" / "ecosystem" / "accelerate_loop.py"))["main"]
    assert main(cpu=True) < 0.7 * math.log(16)
