"""The monitor in real training loops, and the range of loops on data from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from loopscale import UserError
from loopscale.cli import main
from loopscale.diagnosis import diagnose, trainer_callback
from loopscale.nn import LoopedTransformer, ModelConfig

sys.path.insert(0, str(Path(__file__).parent))
import blocks as own


def test_a_hugging_face_trainer_samples_every_visit(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = transformers.AlbertForMaskedLM(
        transformers.AlbertConfig(
            vocab_size=61,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
        )
    )
    rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(12)]
    callback = trainer_callback(every=2)
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=5,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    transformers.Trainer(model=model, args=options, train_dataset=rows, callbacks=[callback]).train()
    assert [sample.step for sample in callback.samples] == [0, 2, 4]
    assert all(len(norms) == 4 for norms in callback.samples[0].norms.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_range_of_loops_with_a_loss_of_ones_own():
    model = LoopedTransformer(ModelConfig(vocab_size=17, width=32, loops=4))
    tokens = torch.randint(0, 17, (2, 8), generator=torch.Generator().manual_seed(0))
    found = diagnose(model, tokens, loops_range=(2, 8), data=[tokens], products=8).details["loops_range"]
    assert set(found["loss"]) == set(found["output_change"]) == {2, 4, 8} and found["safe_by"] == "loss"
    with torch.no_grad():
        logits = model(tokens, loops=8)
    true = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert found["loss"][8] == pytest.approx(float(true), rel=1e-4)
    mine = diagnose(
        model, tokens, loops_range=(2, 8), data=[tokens], loss=lambda out, batch: out.sum() * 0 + 3, products=8
    )
    assert set(mine.details["loops_range"]["loss"].values()) == {3.0}
    with pytest.raises(UserError, match="cannot be varied"):
        diagnose(own.SharedStorage(), loops_range=(1, 8))


def test_an_unscaled_loop_leaves_its_range_sooner():
    spans = {}
    for rule in ("looped", "none"):
        model = LoopedTransformer(ModelConfig(vocab_size=17, width=32, loops=4, rule=rule), seed=0)
        spans[rule] = diagnose(model, loops_range=(1, 32), products=8).details["loops_range"]["output_change"]
    assert all(spans["looped"][n] < spans["none"][n] for n in (8, 16, 32))


def test_one_step_law_tells_rules_apart():
    slopes = {}
    for rule in ("looped", "none"):
        model = LoopedTransformer(ModelConfig(vocab_size=17, width=32, loops=8, rule=rule), seed=0)
        made = []

        def mine(module, made=made):
            made.append(torch.optim.SGD(module.parameters(), lr=0.01))
            return made[-1]

        step = diagnose(model, optimizer=mine, products=8).details["one_step"]
        assert len(made) == len(step["first"]) == 3 and step["optimizer"] == "yours"
        slopes[rule] = step["slope_first"]
    assert abs(slopes["looped"]) < 0.25 < slopes["none"]


def test_data_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("made.py").write_text(
        "import torch\nfrom loopscale.nn import LoopedTransformer, ModelConfig\n"
        "def make():\n    return LoopedTransformer(ModelConfig(width=32, loops=4)), torch.zeros(1, 5, dtype=torch.long)\n"
    )
    Path("text.txt").write_text("to be or not to be " * 100)
    assert main(["diagnose", "made.py:make", "--loops-range", "1:8", "--data", "text.txt", "--json"]) == 0
    span = json.loads(capsys.readouterr().out)["details"]["loops_range"]
    assert set(span["loss"]) == {"1", "2", "4", "8"} and span["safe"][0] <= 4 <= span["safe"][1]
    for arguments, says in (
        (["--data", "text.txt"], "add --loops-range"),
        (["--data", "absent.txt", "--loops-range", "1:8"], "there is no file absent.txt"),
    ):
        assert main(["diagnose", "made.py:make", *arguments]) == 2
        assert says in capsys.readouterr().err


TOKENS = torch.zeros(1, 4, dtype=torch.long)


def wanted(**options):
    """Diagnose a small model with these options, and give the one sentence that refuses them."""
    with pytest.raises(UserError) as told:
        diagnose(LoopedTransformer(ModelConfig(vocab_size=17, width=32, loops=2)), TOKENS, **options)
    said = str(told.value)
    assert "\n" not in said and len(said) < 300, said
    return said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"loops_arg": 3}, "loops_arg"),
        ({"loops_arg": ""}, "loops_arg"),
        ({"loops_range": 8}, "loops_range"),
        ({"loops_range": "1:8"}, "loops_range"),
        ({"loops_range": (0, 8)}, "loops_range"),
        ({"loops_range": (1, 2.5)}, "loops_range"),
        ({"loops_range": (True, 8)}, "loops_range"),
        ({"loops_range": (8, 1)}, "(1, 8)"),
        ({"products": -1}, "products"),
        ({"products": 2.5}, "products"),
        ({"products": True}, "products"),
        ({"optimizer": "adamw"}, "lambda model"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)])}, "lambda model"),
        ({"data": [TOKENS]}, "loops_range"),
        ({"loss": lambda output, batch: output.sum()}, "data"),
        ({"loss": "ce", "data": [TOKENS], "loops_range": (1, 8)}, "loss"),
        ({"data": TOKENS, "loops_range": (1, 8)}, "data=[tokens]"),
        ({"data": "text.txt", "loops_range": (1, 8)}, "data=[tokens]"),
        ({"training": "yes"}, "training"),
        ({"training": 1}, "training"),
        ({"loops_range": (1, 8), "optimiser": None}, "optimizer"),
    ],
)
def test_an_option_that_means_nothing_is_refused_before_the_model_runs(options, word):
    assert word in wanted(**options)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"optimizer": torch.optim.SGD}, "optimizer="),
        ({"optimizer": lambda model: 3}, "lambda model"),
        ({"optimizer": lambda model: torch.optim.SGD([torch.zeros(1, requires_grad=True)])}, "other weights"),
    ],
)
def test_an_optimizer_that_trains_no_copy_of_the_model_is_refused(options, word):
    assert word in wanted(**options, products=1)


def test_a_model_without_weights_to_train_is_no_fault_of_an_optimizer():
    class Buffers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.loops = torch.nn.Parameter(torch.eye(8) / 2), 4

        def forward(self, x):
            for _ in range(self.loops):
                x = torch.tanh(x @ self.w)
            return x

        def __deepcopy__(self, memo):  # as of scripted parts: what the copy holds takes no gradient
            made = Buffers()
            made.w.requires_grad_(False)
            return made

    found = diagnose(Buffers(), torch.randn(2, 8), products=1)
    assert found.looped and found.details["one_step"] is None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"data": []}, "no batch"),
        ({"data": [TOKENS.float()]}, "tokens are whole numbers"),
        ({"data": [TOKENS], "loss": lambda output, batch: output}, "one number"),
        ({"data": [TOKENS], "loss": lambda output: output.sum()}, "loss= failed"),
    ],
)
def test_data_and_a_loss_that_give_no_number_are_refused(options, word):
    assert word in wanted(**options, products=0, loops_range=(1, 2))
