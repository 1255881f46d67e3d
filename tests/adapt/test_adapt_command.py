"""`loopscale convert`: an ordinary checkpoint in, an ordinary checkpoint out."""

from __future__ import annotations

import json

import pytest
import torch
from adapt_models import bert, llama, tokens

from loopscale import UserError, attachment, diagnose, restore
from loopscale.cli import main
from loopscale.cli.diagnose_target import load_target


@pytest.fixture
def saved(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate("? to be or not".split())}, unk_token="?")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    llama(4).save_pretrained(tmp_path / "in")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "in")
    (tmp_path / "text").write_text("to be or not to be " * 20)
    return tmp_path


def run(*words):
    return main(["convert", *map(str, words)])


def test_a_folder_is_converted_and_restored(saved, capsys):
    from transformers import AutoTokenizer, LlamaForCausalLM

    span = ("--start", 1, "--stop", 3, "--loops", 4, "--strength", 0)
    assert run(saved / "in", *span, "--out", saved / "out", "--text", saved / "text", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["loss_before"] == report["loss_after"] and report["start"] == 1
    model = LlamaForCausalLM.from_pretrained(saved / "out")
    assert restore(model).loops == 4
    before = LlamaForCausalLM.from_pretrained(saved / "in")
    assert torch.equal(model(tokens(), use_cache=False).logits, before(tokens(), use_cache=False).logits)
    assert AutoTokenizer.from_pretrained(saved / "out")("to be").input_ids == [1, 2]
    assert run(saved / "in", "--start", 0, "--stop", 4, "--loops", 2, "--layers", 2, "--out", saved / "small") == 0
    assert "4 layers tied to 2 (first)" in capsys.readouterr().out
    assert LlamaForCausalLM.from_pretrained(saved / "small").config.num_hidden_layers == 2


def test_a_converted_folder_is_diagnosed_with_its_loops(saved):
    from transformers import LlamaForCausalLM

    assert run(saved / "in", "--start", 1, "--stop", 3, "--loops", 4, "--steps", "even", "--out", saved / "out") == 0
    model = load_target(str(saved / "out")).model
    found = diagnose(model, products=4)
    assert found.loops == 4 and found.loops_argument == "handle.set_loops" and attachment(model).loops == 4
    assert found.details["base_layers"] == 2 and "knob-without-effect" not in found.codes
    with pytest.raises(UserError, match="its loops are not in place: call loopscale\\.restore"):
        diagnose(LlamaForCausalLM.from_pretrained(saved / "out"))


def test_layers_are_named_by_first_and_last(saved, capsys):
    assert run(saved / "in", "--layers", "1..2", "--loops", 4, "--steps", "even", "--out", saved / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["start"], report["stop"], report["strength"]) == (1, 3, 1.0)
    assert run(saved / "in", "--layers", "1-2", "--loops", 4, "--out", saved / "other") == 2
    assert "neither a range of layers such as 2..5" in capsys.readouterr().err


@pytest.mark.parametrize("known", [True, False])
def test_a_folders_own_code_is_never_run_unless_trusted(saved, capsys, monkeypatch, known):
    config = json.loads((saved / "in" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    if not known:
        config |= {"architectures": ["Evil"], "model_type": "evil"}
    (saved / "in" / "config.json").write_text(json.dumps(config))
    (saved / "in" / "evil.py").write_text(f"open({str(saved / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("prompted"))
    code = run(saved / "in", "--layers", "1..2", "--loops", 2, "--out", saved / "out")
    assert code == (0 if known else 2) and not (saved / "ran").exists()
    if not known:
        assert "--trust-remote-code runs it" in capsys.readouterr().err
        run(saved / "in", "--layers", "1..2", "--loops", 2, "--out", saved / "out", "--trust-remote-code")
        assert (saved / "ran").exists()


@pytest.mark.parametrize(
    "key", ["hidden_size", "architectures", "num_attention_heads", "model_type", "rope_parameters"]
)
@pytest.mark.parametrize("value", [[], [3], {}, "x", -1, None])
def test_whatever_stands_in_a_config_is_a_model_or_one_sentence(saved, capsys, key, value):
    config = json.loads((saved / "in" / "config.json").read_text())
    (saved / "in" / "config.json").write_text(json.dumps(config | {key: value}))
    code = run(saved / "in", "--start", 1, "--stop", 3, "--loops", 4, "--out", saved / "out")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("loopscale:")]
    assert (code, len(lines)) in ((0, 0), (2, 1)) and (saved / "out").exists() is (code == 0)
    assert not any("a mistake of loopscale" in line for line in lines)


def test_mistakes_are_sentences_and_leave_nothing(saved, capsys):
    span = ("--start", 1, "--stop", 3, "--loops", 4)
    bert().save_pretrained(saved / "bert")
    (saved / "broken").mkdir()
    (saved / "broken" / "config.json").write_text("{")
    (saved / "empty").write_text("")
    (saved / "none").mkdir()
    cases = [
        ((saved / "in", "--start", 1, "--stop", 9, "--loops", 4), "no range of the 4 layers"),
        ((saved / "in", *span, "--strength", -1), "strength"),
        ((saved / "in", *span, "--rule", "loped"), "did you mean 'looped'"),
        ((saved / "in", *span, "--text", saved / "absent"), "cannot make tokens of"),
        ((saved / "in", *span, "--text", saved / "empty"), "shorter than two tokens"),
        ((saved / "absent", *span), "there is no folder"),
        ((saved / "none", *span), "no config.json"),
        ((saved / "broken", *span), "cannot load the model"),
        ((saved / "bert", "--start", 0, "--stop", 1, "--loops", 2, "--text", saved / "text"), "leave --text out"),
        ((saved / "in", *span, "--stack", "model.layer"), "did you mean 'model.layers'"),
    ]
    for words, message in cases:
        assert run(*words, "--out", saved / "out") == 2, words
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("loopscale:")]
        assert len(lines) == 1 and message in lines[0] and "Traceback" not in said
        assert not (saved / "out").exists() and not list(saved.glob(".out*"))
    assert run(saved / "in", *span, "--out", saved / "in") == 2
    assert "not an empty folder" in capsys.readouterr().err
