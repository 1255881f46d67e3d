"""An exported run is the run: the same logits, the same tokens, the same text; nothing half written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from loopscale import UserError  # noqa: E402
from loopscale.cli import main  # noqa: E402
from loopscale.data.tokenizer import BPETokenizer, ByteTokenizer  # noqa: E402
from loopscale.integrations.export import export_run  # noqa: E402
from loopscale.integrations.tokenizer import SEPARATOR, fast_tokenizer  # noqa: E402
from loopscale.train import generate, make_config, train_run  # noqa: E402
from loopscale.train.load_model import load_model  # noqa: E402

BPE = BPETokenizer.train(["the loop visits the layers of the loop. " * 20], 290)
PAIRS = [(ours, fast_tokenizer(ours)) for ours in (ByteTokenizer(), BPE)]
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@given(TEXTS | st.sampled_from([SEPARATOR, f"a{SEPARATOR}b", "Ā", "  two  spaces ", "\r\n", " ,.!?'s n't"]))
@settings(max_examples=60, deadline=None)
def test_the_fast_tokenizer_has_our_ids_and_gives_the_text_back(text):
    for ours, fast in PAIRS:
        ids = ours.encode(text).tolist()
        assert fast(text)["input_ids"] == ids
        assert fast.decode(ids) == text
        assert fast.decode(ids[:-1]) == ours.decode(ids[:-1])


@pytest.mark.parametrize("ours,fast", PAIRS, ids=["bytes", "bpe"])
def test_the_fast_tokenizer_survives_being_saved(ours, fast, tmp_path):
    fast.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("def f(x):\n    return 'λ Ā 🌀'", f"a{SEPARATOR}b", "it's  fine ."):
        assert loaded(text)["input_ids"] == ours.encode(text).tolist()
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.is_fast and loaded.eos_token_id == loaded.pad_token_id == 0 and len(loaded) == ours.vocab_size
    padded = loaded(["a", "abc"], padding=True)
    assert padded["input_ids"][0][0] == 0 and padded["attention_mask"][0][0] == 0


def test_an_exported_run_is_the_run(run: Path, tmp_path: Path):
    out = tmp_path / "hf"
    said = export_run(run, out)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(said["files"])
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    trained = load_model(run)
    ids = tokenizer("loop visit 圈 ", return_tensors="pt")
    assert ids["input_ids"][0].tolist() == trained.tokenizer.encode("loop visit 圈 ").tolist()
    assert torch.equal(model(**ids).logits, trained.model(ids["input_ids"]))
    new = model.generate(**ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert tokenizer.decode(new[0]) == generate(run, "loop visit 圈 ", 12, temperature=0)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_the_card_tells_the_truth(run: Path, tmp_path: Path):
    export_run(run, tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    losses = [json.loads(line).get("val_loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert f"{losses[-1]:.4f} nats per token at step 8" in card
    assert "residual scale 0.2357 at N = 3" in card and str(run) not in card


@pytest.mark.parametrize("run", ["bytes", pytest.param("bpe", marks=pytest.mark.slow)], indirect=True)
def test_a_fresh_process_loads_it_after_one_import(run: Path, tmp_path: Path):
    export_run(run, tmp_path / "hf")
    code = (
        "import sys; import loopscale.integrations.huggingface\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'hf')!r}, trust_remote_code=False)\n"
        "print(type(model).__name__, model.config.loops)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["LoopedForCausalLM", "3"], done.stderr


def test_mistakes_leave_nothing_behind(run: Path, tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(UserError, match="already exists and is no empty folder"):
        export_run(run, tmp_path / "taken")
    with pytest.raises(UserError, match="is not a run folder"):
        export_run(tmp_path / "taken", tmp_path / "hf")
    with pytest.raises(UserError, match=r"cannot write .* name another place"):
        export_run(run, tmp_path / "taken" / "file" / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(run), str(tmp_path / "hf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 8
    assert main(["export", str(run), str(tmp_path / "hf")]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_user_model_of_transformers_is_exported_as_what_it_is(texts: Path, tmp_path: Path):
    place = f"{Path(__file__).parents[1] / 'train' / 'user_code.py'}:of_transformers"
    data = {"path": str(texts), "context": 32, "batch_size": 4, "validation_fraction": 0.2}
    model = {"width": 32, "loops": 3, "factory": place}
    train_run(make_config({"model": model, "data": data, "train": {"steps": 2, "device": "cpu"}}), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "hf", model=place)
    assert "Trained by loopscale" in (tmp_path / "hf/README.md").read_text()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    trained = load_model(tmp_path / "run", model=place).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trained.items())
