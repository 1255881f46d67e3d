"""docs/transfer.md and the end of chapter 5 are programs: their commands run on a tiny config, on the file they show."""

import json
import re
import shlex
from pathlib import Path

import pytest

from loopscale.cli import main
from loopscale.cli.transfer import command as transfer

DOCS = Path(__file__).parents[2] / "docs"
PAGE, CHAPTER = (DOCS / "transfer.md").read_text(), (DOCS / "learn" / "blocks.md").read_text()
FEWER = ["--seeds", "1", "--workers", "1", "--lrs", "2^-8,2^-7,2^-6", "--loops", "1,2"]
SIZES = ("train.steps=2", "train.eval_batches=1", "model.width=32", "data.context=16", "data.batch_size=2")


def run(text, folder, monkeypatch):
    """Every command of a document; only how much it does is cut."""
    monkeypatch.chdir(folder)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S) for line in block.splitlines()]
    for line in lines:
        program, *arguments = shlex.split(line)
        cut = [part for size in SIZES for part in ("--set", size)]
        assert program == "loopscale" and main([*arguments, *FEWER, *cut]) in (0, 1), line
    return lines


@pytest.mark.slow
def test_the_commands_of_the_page_run_on_its_file(tmp_path, monkeypatch):
    source = re.search(r"```python\n(.*?)```", PAGE, flags=re.S)[1]
    (tmp_path / "mine.py").write_text(source)
    assert len(run(PAGE, tmp_path, monkeypatch)) == 2
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert set(result["rules"]) == {"looped", "none"} and "errors" not in result["provenance"]


@pytest.mark.slow
def test_the_chapters_model_goes_into_a_study(tmp_path, monkeypatch):
    cells = re.findall(r"```\{code-cell\}\n(.*?)```", CHAPTER, flags=re.S)
    parts = re.findall(
        r"^(?:import .*|from .*|(?:class|def) .*(?:\n(?:[ )].*|(?=\n)|$))*)", "\n".join(cells), flags=re.M
    )
    (tmp_path / "mine.py").write_text("\n\n".join(parts))
    assert len(run(CHAPTER, tmp_path, monkeypatch)) == 1
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    scale = {row["name"]: row["value"] for row in result["rules"]["looped"]["applied"]["2"]}["residual_scale"]
    names: dict = {}
    exec((tmp_path / "mine.py").read_text(), names)
    sizes = {"layers": 2, "width": 32, "vocab_size": 256, "context": 16}
    model = names["make_model"](loops=2, rule="looped", strength=1.0, base_layers=2, **sizes)
    assert model.blocks.residual_scale(2) == pytest.approx(scale)


def test_every_option_is_told():
    for parameter in transfer.params:
        for option in (word for word in parameter.opts if word.startswith("--")):
            assert f"`{option}" in PAGE or f"{option}`" in PAGE, option
