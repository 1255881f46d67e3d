"""lm-evaluation-harness on a run: the numbers are those of the model itself, at the loops asked for; nothing is fetched."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("lm_eval")

from loopscale.cli import main
from loopscale.train import make_config, train_run
from loopscale.train.load_model import load_model

CODE = Path(__file__).parents[1] / "train" / "user_code.py"

DOCUMENTS = [{"text": "loop visit", "choices": [" stream", " branch", " zz"], "answer": i % 3} for i in range(4)] + [
    {"text": "layer rate λ", "choices": [" norm", " Ā", " scale"], "answer": 1}
]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    lines = [
        "task: words",
        "dataset_path: json",
        "dataset_kwargs:",
        "  data_files:",
        f"    test: {folder / 'data.jsonl'}",
        "output_type: multiple_choice",
        "test_split: test",
        'doc_to_text: "{{text}}"',
        'doc_to_choice: "{{choices}}"',
        "doc_to_target: answer",
        'target_delimiter: ""',
        "metric_list: [{metric: acc}]",
        "metadata: {version: 1}",
    ]
    (folder / "words.yaml").write_text("\n".join(lines) + "\n")
    return folder / "words.yaml"


def by_hand(run: Path, loops: int, model: str | None = None) -> float:
    """The share of documents whose right choice has the highest log-likelihood."""
    trained = load_model(run, model=model, loops=loops)
    encode, right = trained.tokenizer.encode, 0
    for document in DOCUMENTS:
        scores = []
        for choice in document["choices"]:
            start, ids = len(encode(document["text"])), torch.tensor(encode(document["text"] + choice))
            with torch.inference_mode():
                logs = trained.model(ids[None, :-1]).log_softmax(-1)[0]
            scores.append(sum(float(logs[place - 1, ids[place]]) for place in range(start, len(ids))))
        right += scores.index(max(scores)) == document["answer"]
    return right / len(DOCUMENTS)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["evaluate", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("run", ["bytes", pytest.param("bpe", marks=pytest.mark.slow)], indirect=True)
def test_accuracy_is_what_the_model_says(run: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = said(capsys, str(run), "--tasks", str(task), "--json", "--loops", "5")
    assert code == 0, err
    found = json.loads(out)
    assert found["loops"] == 5 and found["documents"] == {"words": 5}
    assert found["tasks"]["words"]["acc"] == pytest.approx(by_hand(run, 5))
    assert main(["export", str(run), str(tmp_path / "hf")]) == 0
    capsys.readouterr()
    code, out, _ = said(capsys, str(tmp_path / "hf"), "--tasks", "words", "--include", str(task.parent), "--limit", "3")
    assert code == 0 and out.startswith("at 3 loops, residual scale 0.2357\nwords, 3 documents: acc ")


def test_a_user_model_is_evaluated_as_what_it_is(
    texts: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    place, run = f"{CODE}:make_model", tmp_path / "run"
    data = {"path": str(texts), "context": 32, "batch_size": 4, "validation_fraction": 0.2}
    model = {"width": 32, "loops": 3, "factory": place}
    train_run(make_config({"model": model, "data": data, "train": {"steps": 3, "device": "cpu"}}), run)
    arguments = (str(run), "--tasks", str(task), "--loops", "2")
    assert f"add --model {place}" in " ".join(said(capsys, *arguments)[2].split())
    code, printed, err = said(capsys, *arguments, "--model", place, "--json")
    assert code == 0, err
    assert json.loads(printed)["tasks"]["words"]["acc"] == pytest.approx(by_hand(run, 2, place))


@pytest.mark.parametrize("run", ["bytes"], indirect=True)
def test_mistakes_get_a_sentence(
    run: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import lm_eval.tasks

    # Reading the harness's thousands of tasks takes seconds: another test does.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    (tmp_path / "broken.yaml").write_text("dataset_path: json\n")
    for arguments, words in [
        ((str(run), "--tasks", "words"), "unknown task 'words'"),
        ((str(tmp_path), "--tasks", str(task)), "is neither a run nor an exported folder"),
        (
            (str(run), "--tasks", str(tmp_path / "broken.yaml")),
            "does not describe a task: it needs a line 'task: NAME'",
        ),
        ((str(run), "--tasks", str(tmp_path / "absent.yaml")), "cannot read the task file"),
        ((str(run), "--tasks", str(task), "--loops", "0"), "loops must be from 1 to 1,000,000, not 0"),
        ((str(run), "--tasks", str(task), "--limit", "0"), "limit must be at least 1 document, not 0"),
        ((str(run), "--tasks", ","), "no task is named"),
        ((str(run), "--tasks", "words", "--include", str(tmp_path / "none")), "is not a folder of task files"),
    ]:
        code, out, err = said(capsys, *arguments)
        assert code == 2 and out == "" and words in err and "Traceback" not in err, (arguments, err)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["bytes"], indirect=True)
def test_a_task_whose_data_are_elsewhere_is_a_sentence(run: Path):
    command = [sys.executable, "-m", "loopscale", "evaluate", str(run), "--tasks", "hellaswag", "--limit", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "are not on this machine" in last and "Traceback" not in done.stderr, done.stderr
