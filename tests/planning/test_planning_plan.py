"""The plan against what torch counts and keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from loopscale import LoopedTransformer, UserError
from loopscale.cli import main
from loopscale.nn.visits import Recompute
from loopscale.planning import Machine, Shape, memory, plan
from loopscale.train import fit, make_config, train_run
from loopscale.train.needs import check_memory, shape_of

CONFIGS: list[dict[str, Any]] = [
    {},
    {"width": 128, "layers": 2, "loops": 3},
    {"width": 64, "loops": 8, "prelude": 1, "coda": 2},
    {"width": 128, "kv_heads": 1, "loops": 2, "mlp_ratio": 4.0},
    {"width": 64, "loops": 6, "gradient_visits": 2},
    {"width": 64, "loops": 4, "tied_readout": True, "vocab_size": 1000},
]


def step(model_values: dict[str, Any], context: int, recompute: int = 0) -> tuple[Shape, Any]:
    config = make_config(
        {"model": model_values, "data": {"context": context, "batch_size": 2}, "train": {"recompute": recompute}}
    )
    model = LoopedTransformer(config.network(256))
    model.core.recompute = Recompute(recompute)
    tokens = torch.randint(0, 200, (2, context))

    def run() -> torch.Tensor:
        return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())

    assert shape_of(config).parameters()["total"] == sum(p.numel() for p in model.parameters())
    return shape_of(config), run


@pytest.mark.parametrize("context", [32, 128])
@pytest.mark.parametrize("values", CONFIGS, ids=range(len(CONFIGS)))
def test_flops_are_those_that_torch_counts(values: dict[str, Any], context: int) -> None:
    shape, run = step(values, context)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run().backward()
    assert shape.flops()["model"] * 2 * context == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_recomputed_flops_too() -> None:
    shape, run = step({"width": 64, "loops": 4, "layers": 2}, 64, recompute=1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run().backward()
    assert shape.flops()["executed"] * 2 * 64 == pytest.approx(counter.get_total_flops(), rel=0.02)


def kept_bytes(run: Any) -> int:
    """Bytes of the distinct storages that autograd keeps, weights not counted."""
    storages: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not (tensor.is_leaf and tensor.requires_grad):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storages.values())


@pytest.mark.parametrize(("width", "kv_heads"), [(128, None), (256, 2)])
def test_activation_memory_of_a_visit(width: int, kv_heads: int | None) -> None:
    """The difference between two numbers of loops is what one visit keeps; 15 % either way."""
    context, kept = 128, {}
    for loops in (2, 6):
        shape, run = step({"width": width, "loops": loops, "kv_heads": kv_heads}, context)
        kept[loops] = kept_bytes(run)
    measured = (kept[6] - kept[2]) / 4 / (2 * context)
    predicted = shape.kept_per_token() / 6
    assert predicted == pytest.approx(measured, rel=0.15)


def test_activations_are_flat_when_recomputed() -> None:
    shapes = (Shape(width=1024, kv_width=1024, mlp_width=2736, loops=n, recompute=1, recompute_keep=8) for n in (4, 64))
    few, many = (shape.kept_per_token() for shape in shapes)
    assert many < 1.3 * few
    assert Shape(loops=64).kept_per_token() == 16 * Shape(loops=4).kept_per_token()


BIG = Shape(
    vocab_size=50_000,
    width=4096,
    layers=32,
    loops=8,
    kv_width=1024,
    mlp_width=11008,
    context=4096,
    batch=512,
    steps=10**5,
)


def test_sizes_that_nobody_here_can_run() -> None:
    answer = plan(BIG, Machine(64, 80e9, 989e12, 0.4, 2.5))
    assert 5e9 < answer.parameters["total"] < 8e9
    assert not answer.fits and answer.changes["train.strategy"] == "fsdp" and answer.changes["train.recompute"] == 1
    assert answer.dollars == pytest.approx(answer.hours * 64 * 2.5)
    assert answer.hours == pytest.approx(
        answer.tokens * answer.flops_per_token["executed"] / (64 * 989e12 * 0.4) / 3600
    )
    assert plan(BIG, Machine(1, 1e9)).changes == {}


def test_the_changes_make_it_fit_and_none_is_needless() -> None:
    from dataclasses import replace

    fields = {"train.recompute": "recompute", "train.strategy": "sharded", "train.precision": "bf16"}
    fields["train.accumulate"] = "accumulate"
    machine = Machine(64, 80e9)
    made = {
        fields[key]: value if fields[key] in ("recompute", "accumulate") else True
        for key, value in plan(BIG, machine).changes.items()
    }
    assert plan(replace(BIG, **made), machine).fits
    for left_out in made:
        assert not plan(replace(BIG, **{key: value for key, value in made.items() if key != left_out}), machine).fits


def test_shards_divide_what_replicas_repeat() -> None:
    replicas, shards = (memory(Shape(width=1024, sharded=sharded), 8) for sharded in (False, True))
    assert shards.weights == replicas.weights / 8 and shards.optimizer == replicas.optimizer / 8
    assert shards.gathered == replicas.weights


EXAMPLE = str(Path(__file__).parents[2] / "examples" / "tiny.toml")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", EXAMPLE, "--json", "--price", "2", "--devices", "4"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["fits"] and answer["memory"]["total"] > 0 and answer["dollars"] > 0
    assert main(["plan", EXAMPLE, "--memory", "1GB"]) == 1
    assert "it does not fit" in capsys.readouterr().out


def test_a_memory_without_a_unit_is_in_gigabytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", EXAMPLE, "--memory", "24", "--gpus", "4"]) == 0
    said = capsys.readouterr().out
    assert "of the 24 GB of a device" in said
    # What is priced comes first; small numbers have small units, and no time is 8e-05 seconds.
    assert said.startswith("model       N = 4, L = 2, d = 64, 16 sequences of 64 tokens a step, ")
    assert " MB" in said and "less than a second" in said and "e-0" not in said and "0.000" not in said


def test_the_assumption_is_printed_and_doubted_where_it_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", EXAMPLE, "--gpus", "4"]) == 0
    said = capsys.readouterr().out
    assert "assumed     40% of a peak of 989 TFLOP/s (--mfu, --peak-tflops)" in said
    assert "caution     with a width of 64 and 256 tokens at a time a device does not reach 40% of its peak" in said
    assert main(["plan", EXAMPLE, "--gpus", "4", "--mfu", "0.01"]) == 0
    assert "caution" not in capsys.readouterr().out
    assert plan(BIG, Machine(64)).cautions == ()


def test_a_large_config_in_numbers_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """The documented example: 185 M parameters, eight GPUs, ten billion tokens."""
    large = str(Path(EXAMPLE).with_name("180m.toml"))
    assert main(["plan", large, "--gpus", "8", "--memory", "80GB", "--price", "2.5"]) == 0
    said = capsys.readouterr().out
    assert "total 185 M" in said and "10.5 B tokens in all" in said and "GFLOP a token" in said
    assert "caution" not in said and "dollars" in said


def test_the_price_of_a_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    large = str(Path(EXAMPLE).with_name("180m.toml"))
    assert main(["plan", large, "--gpus", "8", "--tuning", "--json"]) == 0
    price = json.loads(capsys.readouterr().out)["tuning"]
    assert price["trials"] == 2 * 24 and "N = 1" in price["size"] and 0 < price["device_hours"] < 100
    assert main(["plan", large, "--gpus", "8", "--exponent", "--json"]) == 0  # its data are not there yet
    assert json.loads(capsys.readouterr().out)["exponent"]["device_hours"] > price["device_hours"]


def test_the_price_of_an_exponent_study_follows_its_trials(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", EXAMPLE, "--gpus", "1", "--exponent", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    price = whole["exponent"]
    assert price["size"] == "N = 2, 4, 8" and price["trials"] == 12 + 3 * (15 + 27) + 8 * (6 + 2)
    assert price["device_hours"] > 20 * whole["hours"]


@pytest.mark.parametrize(
    ("values", "blamed"),
    [
        ({"model": {"layers": 1_000_000}}, "model.layers = 1000000"),
        ({"data": {"batch_size": 100_000_000}}, "data.batch_size = 100000000"),
        ({"data": {"context": 10**9}}, "data.context = 1000000000"),
        ({"model": {"width": 2**20, "head_dim": 64}}, "model.width = 1048576"),
    ],
)
@pytest.mark.parametrize("use", [train_run, fit], ids=["train", "fit"])
def test_what_the_machine_cannot_hold_is_refused_before_anything_is_made(
    values: dict[str, Any], blamed: str, use: Any, tmp_path: Path
) -> None:
    config = make_config(values)
    arguments = [config, tmp_path / "run"] if use is train_run else [config]
    with pytest.raises(
        UserError, match=rf"^training takes [\d.,]+ [TG]B and this machine has .*: lower {blamed}, or see"
    ):
        use(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_planned_as_usual_is_not_refused() -> None:
    check_memory(make_config({"model": {"width": 512, "layers": 8, "loops": 4}}))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--memory", "24XB"], "--memory '24XB' is no size: write 80GB or 40GiB"),
        (["--memory", "much"], "--memory 'much' is no size: write 80GB or 40GiB"),
        (["--mfu", "40"], "--mfu is a share between 0 and 1, got 40: 0.4 is 40 % of the peak"),
        (["--devices", "0"], "the number of devices must be at least 1, got 0"),
        (
            ["--devices", "3"],
            "data.batch_size = 16 cannot be dealt out to 3 devices x 1 accumulated parts: use a multiple of 3",
        ),
    ],
)
def test_what_it_refuses(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", EXAMPLE, *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_the_arithmetic_needs_no_torch() -> None:
    code = "import sys, loopscale.planning as p; p.plan(p.Shape(), p.Machine()); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nonsense_is_a_user_error() -> None:
    with pytest.raises(UserError):
        Machine(memory=-1)
