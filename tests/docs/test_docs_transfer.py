"""docs/transfer.md and the end of chapter 5 are programs: their commands run on a tiny config, on the file they show."""

import json
import re
import shlex
from pathlib import Path

import pytest

import loopscale as ls
from loopscale.cli import main
from loopscale.cli.transfer import command as transfer
from loopscale.study import UserCode
from loopscale.train import parse_values
from loopscale.train.training import make_task, task_optimizer
from loopscale.transfer import Cell, StudyPlan, get_preset

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


def chapter_file():
    """What chapter 5 puts into mine.py: its imports, classes and functions."""
    cells = re.findall(r"```\{code-cell\}\n(.*?)```", CHAPTER, flags=re.S)
    parts = re.findall(
        r"^(?:import .*|from .*|(?:class|def) .*(?:\n(?:[ )].*|(?=\n)|$))*)", "\n".join(cells), flags=re.M
    )
    return "\n\n".join(parts)


@pytest.mark.slow
def test_the_commands_of_the_page_run_on_its_file(tmp_path, monkeypatch):
    source = re.search(r"```python\n(.*?)```", PAGE, flags=re.S)[1]
    (tmp_path / "mine.py").write_text(source)
    assert len(run(PAGE, tmp_path, monkeypatch)) == 2
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert set(result["rules"]) == {"looped", "none"} and "errors" not in result["provenance"]


@pytest.mark.slow
def test_the_chapters_model_goes_into_a_study(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(chapter_file())
    assert len(run(CHAPTER, tmp_path, monkeypatch)) == 1
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    scale = {row["name"]: row["value"] for row in result["rules"]["looped"]["applied"]["2"]}["residual_scale"]
    names: dict = {}
    exec((tmp_path / "mine.py").read_text(), names)
    sizes = {"layers": 2, "width": 32, "vocab_size": 256, "context": 16}
    model = names["make_model"](loops=2, rule="looped", strength=1.0, base_layers=2, **sizes)
    assert model.blocks.residual_scale(2) == pytest.approx(scale)


def test_the_studys_strength_and_base_layers_give_its_eps_and_rates(tmp_path, monkeypatch):
    """What chapter 5 and the page say of a rate that a study found; without a base it is not so."""
    (tmp_path / "mine.py").write_text(chapter_file())
    monkeypatch.chdir(tmp_path)
    chosen = get_preset("demo")
    plan = StudyPlan(
        base=chosen.base((), True), user_code=UserCode.at("mine.py:make_model"), loops=(16,), strengths=(0.5,)
    )
    values = plan.job_config(Cell(plan.arms[0], 2**-6.5, 0))
    config = parse_values({name: part for name, part in values.items() if name != "user_code"})
    task = make_task(config.using("mine.py:make_model"))
    names: dict = {}
    exec((tmp_path / "mine.py").read_text(), names)

    def numbers(groups):
        return [{key: group[key] for key in ("name", "lr", "weight_decay", "eps")} for group in groups]

    theirs = numbers(task_optimizer(task).param_groups)
    for base_layers, same in ((2, True), (None, False)):
        model = names["LoopedGPT"](loops=16, strength=0.5, base_layers=base_layers)
        assert (numbers(ls.param_groups(model, lr=2**-6.5)) == theirs) is same
        assert (model.blocks.residual_scale(16) == task.model.blocks.residual_scale(16)) is same


def test_every_option_is_told():
    for parameter in transfer.params:
        for option in (word for word in parameter.opts if word.startswith("--")):
            assert f"`{option}" in PAGE or f"{option}`" in PAGE, option
