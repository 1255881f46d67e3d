"""Tuning from end to end: on objectives whose truth is known, and on a small house model."""

import json
import logging
import math
import re
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from loopscale import UserError
from loopscale.cli import main
from loopscale.cli.tune import _between, sizes
from loopscale.records import Cell, Journal, Trial
from loopscale.study import InThisProcess, UserCode
from loopscale.train import load_config, make_config, parse_values, with_tuned
from loopscale.tune import Budget, Checks, Size, TuneSettings, read_plan, share_of, tune, verify

FILE = Path(__file__).parent / "valley.py"
BASE = parse_values({"optim": {"lr": 2.0**-7}, "model": {"width": 64, "layers": 1}, "train": {"steps": 100}})
SMALL = Size(1, 1, 64, 100, 16)


class Inline(InThisProcess):
    """Notes what it ran."""

    def __init__(self, stop_after=None):
        self.ran, self.stop_after = [], stop_after

    def submit(self, work, key, cell, config):
        if self.stop_after is not None and len(self.ran) >= self.stop_after:
            raise KeyboardInterrupt
        self.ran.append(key)
        return super().submit(work, key, cell, config)


def verified(folder, executor=None, **checks):
    code = TuneSettings.from_json(read_plan(folder)["settings"]).user_code
    return verify(folder, Checks(**checks), user_code=code, executor=executor or Inline())


def settings(objective="objective", **axes):
    target = SMALL.replace(**{"loops": 32, **axes})
    return TuneSettings(BASE, SMALL, target, trials=12, user_code=UserCode.at(f"{FILE}:{objective}", "objective"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "t"
    return folder, tune(settings(), folder, executor=Inline())


def test_the_optimum_is_found_and_its_interval_holds_it(tuned):
    _, plan = tuned
    values, proxy = plan["proxy"]["values"], plan["proxy"]
    # The valley's own minimum: the cross term vanishes at rate = strength = 0.
    assert abs(math.log2(values["lr"]) + 6.4) < 0.4 and abs(math.log2(values["strength"] / 0.7)) < 0.5
    low, high = proxy["intervals"]["lr"]
    assert low <= 2**-6.4 * 1.1 and high >= 2**-6.4 / 1.1
    assert proxy["loss"] < 2.03 and len(proxy["losses"]) == 3 and proxy["seed_noise"] > 0
    assert proxy["edges"] == []


def test_the_folder_holds_a_plan_and_a_config_for_the_target(tuned):
    folder, plan = tuned
    kept = _read(folder / "plan.json")
    assert {name: value for name, value in kept.items() if name not in ("schema", "seal")} == plan
    config = load_config(folder / "tuned.toml")
    assert (config.model.loops, config.model.base_layers, config.model.base_width) == (32, 1, 64)
    assert (
        config.optim.lr == plan["target"]["values"]["lr"]
        and config.model.strength == plan["target"]["values"]["strength"]
    )
    rows = {row["name"]: row for row in plan["rows"]}
    assert rows["residual_scale"]["value"] == pytest.approx(config.model.strength / 32)
    assert all(row["why"] and row["source"] for row in plan["rows"])
    assert len(Journal(folder).trials) == plan["provenance"]["trials"]


def test_a_finished_tuning_runs_nothing_again(tuned):
    folder, plan = tuned
    again = Inline()
    assert tune(settings(), folder, executor=again)["proxy"] == plan["proxy"] and again.ran == []


def test_stopped_in_the_middle_it_goes_on_to_the_plan_of_a_tuning_that_nobody_stopped(tmp_path, tuned):
    first = Inline(stop_after=7)  # past the five points that are drawn by lot
    with pytest.raises(KeyboardInterrupt):
        tune(settings(), tmp_path / "t", executor=first)
    second = Inline()
    plan = tune(settings(), tmp_path / "t", executor=second)
    assert len(first.ran) == 7 and not set(first.ran) & set(second.ran)
    assert len(set(first.ran + second.ran)) == plan["provenance"]["trials"] >= 12
    assert first.ran + second.ran == list(Journal(tuned[0]).trials) and plan["proxy"] == tuned[1]["proxy"]


def test_a_tuning_goes_on_with_more_trials_seeds_and_a_larger_target(tmp_path):
    first, second = Inline(), Inline()
    tune(settings(), tmp_path / "t", executor=first)
    more = replace(settings(), trials=16, seeds=4, target=SMALL.replace(loops=64))
    plan = tune(more, tmp_path / "t", executor=second)
    assert not set(first.ran) & set(second.ran) and plan["target"]["loops"] == 64
    beside = len(Journal(tmp_path / "t", "beside").trials)
    assert (
        len(plan["proxy"]["losses"]) == 4 and len(first.ran + second.ran) - beside == plan["provenance"]["trials"] >= 16
    )


def found_target(folder):
    return _read(folder / "plan.json")["target"]["loops"]


def _read(path):
    return json.loads(path.read_text())


def test_verification_holds_where_the_rule_holds(tuned):
    folder, _ = tuned
    found = verified(folder, loops=(4, 8), share=5)
    assert {row["axis"] for row in found["local"]} == {"proxy", "loops"} and found["verdict"] == "holds"
    assert all(row["regret"] < 0.005 for row in found["target"])
    assert any("the target itself" in said for said in found["not_verified"])
    again = Inline()
    assert verified(folder, again, loops=(4, 8), share=5)["local"] == found["local"] and again.ran == []
    whole = verified(folder, loops=(4, found_target(folder)), share=50)
    assert not any("the target itself" in said for said in whole["not_verified"]), "it was among the sizes"


def test_verification_finds_a_drift_and_a_divergence(tmp_path):
    plan = tune(settings("drifting"), tmp_path / "d", executor=Inline())
    found = verified(tmp_path / "d", loops=(4, 8), share=5)
    rate = next(row for row in found["target"] if row["along"] == "lr")
    assert found["verdict"] == "fails" and rate["slope"] == pytest.approx(-0.5, abs=0.05)
    tuned_at = math.log2(plan["proxy"]["values"]["lr"])
    assert rate["regret"] == pytest.approx(0.06 * (tuned_at + 6.4 + 2.5) ** 2, rel=0.1)
    tune(settings("fragile"), tmp_path / "f", executor=Inline())
    found = verified(tmp_path / "f", loops=(4,), share=5)
    assert found["verdict"] == "fails" and any("diverged on the way" in said for said in found["says"])


def test_the_printed_commands_run(tmp_path, monkeypatch, capsys, inline, parsed):
    """A tuning goes on by its folder alone; a plan that fails is tuned again nearer to the target."""
    monkeypatch.chdir(tmp_path)
    tune(replace(settings("drifting"), trials=3, seeds=2), Path("d"), executor=Inline())
    place = f"{FILE}:drifting"
    assert main(["tune", "--out", "d", "--objective", place, "--seeds", "3"]) == 0
    assert TuneSettings.from_json(read_plan(Path("d"))["settings"]).seeds == 3
    for wrong in (["tune"], ["tune", "--out", "d"], ["tune", "--out", "d", "--objective", place, "--tune", "lr"]):
        assert main(wrong) == 2
    said = capsys.readouterr().err
    assert "goes on" in said and "add --objective" in said and "--tune makes other trials" in said
    assert main(["verify", "d", "--loops", "4,8", "--share", "5", "--objective", place]) == 1
    nearer = read_plan(Path("d"))["verification"]["next"]
    line = shlex.split(nearer[nearer.index("loopscale ") :])
    assert main([*line[1:], "--trials", "3", "--seeds", "1"]) == 0
    assert read_plan(Path("d-nearer"))["proxy"]["loops"] == 2 and read_plan(Path("d-nearer"))["target"]["loops"] == 32


def test_all_axes_are_verified_alone_and_together(tmp_path):
    tune(settings(layers=4, width=256), tmp_path / "t", executor=Inline())
    found = verified(tmp_path / "t", loops=(8,), layers=(2,), widths=(128,), joint=True, share=50)
    axes = {(row["axis"], row["rule"]) for row in found["local"] if row["along"] == "lr"}
    layers = {("layers", "looped"), ("layers", "looped-complete")}
    assert axes == {("proxy", "looped"), ("loops", "looped"), ("width", "looped"), ("joint", "looped"), *layers}
    joint = next(row for row in found["local"] if row["axis"] == "joint")
    assert (joint["size"]["loops"], joint["size"]["layers"], joint["size"]["width"]) == (8, 2, 128)


def test_what_does_not_fit_the_budget_is_said(tuned):
    folder, _ = tuned
    found = verified(folder, loops=(4, 16), share=0.1)
    assert any(said.startswith("N = 16") and "did not fit" in said for said in found["not_verified"])
    assert found["share_of_direct"] <= 0.1
    with pytest.raises(UserError, match=r"the budget holds no check: the cheapest, N = 4 \(lr\), takes about"):
        verified(folder, loops=(4,), share=0.001)
    with pytest.raises(UserError, match="loops 64 is not above the proxy's 1 and at most the target's 32"):
        verified(folder, loops=(64,))


def test_the_share_that_is_advised_holds_the_checks_it_is_advised_for(tuned, tmp_path):
    plan = tuned[1]
    share = share_of(plan, Checks((4, 8)))
    for name, given in (("all", share), ("less", share - 0.02)):
        shutil.copytree(tuned[0], tmp_path / name)
        found = verified(tmp_path / name, loops=(4, 8), share=given)
        left = [said for said in found["not_verified"] if "did not fit the budget" in said]
        assert (left == []) == (name == "all"), left
    three = share_of(plan, Checks((4, 8), seeds=3))
    assert share < three <= 0.5 and _between(plan) == f"--loops 4,8 --seeds 3 --share {three:g}"

    def costing(factor):
        return {**plan, "cost": {**plan["cost"], "direct_flops": factor * plan["cost"]["direct_flops"]}}

    assert _between(costing(1000)) == "--loops 4,8 --seeds 3", "the default share holds them"
    assert "--seeds" not in _between(costing(0.5)), "two seeds would cost half of a sweep"


def test_a_budget_that_holds_no_check_advises_one_that_does(tuned, tmp_path):
    shutil.copytree(tuned[0], tmp_path / "t")
    with pytest.raises(UserError) as refused:
        verified(tmp_path / "t", loops=(4,), share=0.001)
    share = float(re.search(r"with tuning ([\d.]+)% of a sweep", str(refused.value))[1]) / 100
    found = verified(tmp_path / "t", loops=(4,), share=share + 0.001)
    assert {row["label"] for row in found["local"]} >= {"N = 4 (lr)"}


def test_start_up_counts_against_the_budget_and_three_trials_begin_all_the_same(tmp_path):
    began = time.monotonic() - 100
    late = tune(settings(), tmp_path / "late", executor=Inline(), budget=Budget(50, started=began))
    assert late["provenance"]["trials"] == 3
    cell = Cell(rule="looped", loops=1, lr=0.01, seed=0)
    seen = [Trial(cell=cell, loss=2.0, diverged=False, seconds=2.0)] * 5
    assert Budget(120, 2.0, began).allows(seen, 0, 1) and not Budget(101, 2.0, began).allows(seen, 0, 1)
    assert not Budget(120, 2.0, began, earlier=40).allows(seen, 0, 2), (
        "what an earlier call took counts, spread over cores"
    )
    assert Budget(120, 2.0, began).explores(seen, 1, 16) == int(0.7 * 30 / 2), (
        "of the 30 s that start-up left with these"
    )


def test_only_the_samplers_remark_on_greenlet_is_silenced(tuned):
    logger = logging.getLogger("optuna._gp.batched_lbfgsb")

    def passes(text):
        return bool(logger.filter(logging.LogRecord(logger.name, logging.WARNING, "", 0, text, (), None)))

    assert not passes("The 'greenlet' package is unavailable, falling back to sequential L-BFGS-B optimization.")
    assert passes("The kernel matrix is not positive definite.")


def test_a_missing_package_is_told_before_the_first_trial(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    executor = Inline()
    with pytest.raises(UserError, match=r"needs 'optuna', which is not installed: pip install 'loopscale\[sweep\]'"):
        tune(settings(), tmp_path / "t", executor=executor)
    assert executor.ran == [] and not (tmp_path / "t").exists()


def test_the_help_says_where_the_proxy_is_cut(capsys):
    assert main(["tune", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "one loop; without --target also at most 2 layers and width 128" in said
    base = parse_values({"model": {"loops": 8, "layers": 4, "width": 256}})
    assert [(s.loops, s.layers, s.width) for s in sizes(base, None, None)] == [(1, 2, 128), (8, 4, 256)]
    assert [(s.loops, s.layers, s.width) for s in sizes(base, None, "loops=32")] == [(1, 4, 256), (32, 4, 256)]


def test_trials_that_raise_are_no_loss_and_a_tuning_that_never_works_says_so(tmp_path):
    plan = tune(settings("sometimes"), tmp_path / "s", executor=Inline())
    assert any(trial.error for trial in Journal(tmp_path / "s").trials.values()) and plan["proxy"]["loss"] < 2.1
    with pytest.raises(UserError, match="all 3 trials raised, the first OSError: no disk: mend it"):
        tune(settings("never"), tmp_path / "n", executor=Inline())
    with pytest.raises(UserError, match="the first SystemExit: 3: mend it, and name a new --out"):
        tune(settings("leaves"), tmp_path / "l", executor=Inline())


def test_steps_and_batch_move_the_values_by_their_rules(tmp_path):
    plan = tune(settings(steps=400, batch=64), tmp_path / "t", executor=Inline())
    moved = {(row["name"], row["axis"]): row for row in plan["moved"]}
    assert moved["lr", "batch"]["factor"] == 2.0
    assert moved["lr", "steps"]["factor"] == pytest.approx(16**-0.32)
    proxy, target = plan["proxy"]["values"], plan["target"]["values"]
    assert target["lr"] == pytest.approx(proxy["lr"] * 2 * 16**-0.32, rel=1e-3)
    assert all(row["source"].startswith("arXiv") for row in plan["moved"])
    whys = {row["name"]: row["why"] for row in plan["rows"]}
    assert whys["lr"].endswith("then moved by a rule, see moved") and whys["strength"].endswith("sequences")


HOUSE = {
    "model": {"width": 32, "head_dim": 16, "layers": 1},
    "data": {"path": "synthetic:copy", "context": 16, "batch_size": 4},
    "train": {"steps": 10, "eval_batches": 2, "device": "cpu"},
}


@pytest.mark.slow
def test_the_command_tunes_verifies_and_trains_the_house_model(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(make_config(HOUSE).to_toml())
    arguments = ["small.toml", "--target", "loops=4", "--trials", "4", "--seeds", "2", "--workers", "1", "--out", "t"]
    assert main(["tune", *arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["cost"]["share_of_direct"] < 0.6 and plan["target"]["loops"] == 4
    assert main(["verify", "t", "--loops", "2", "--share", "9", "--workers", "1"]) in (0, 1)
    assert "not verified: " in capsys.readouterr().out
    assert main(["train", "small.toml", "--set", "model.loops=4", "--from", "t/tuned.toml", "--out", "run"]) == 0
    trained = load_config("run/config.toml")
    assert trained.optim.lr == plan["target"]["values"]["lr"] and trained.model.base_width == 32


def test_tuned_values_refuse_another_optimizer_and_a_smaller_model(tmp_path):
    tuned_at = make_config(HOUSE, ["model.base_width=32", "model.base_layers=1"])
    (tmp_path / "tuned.toml").write_text(tuned_at.to_toml())
    with pytest.raises(UserError, match="was tuned with adamw and the config trains with muon"):
        with_tuned(make_config(HOUSE, ["optim.optimizer=muon"]), tmp_path / "tuned.toml")
    with pytest.raises(UserError, match="width = 16, fewer than the 32 tuned at"):
        with_tuned(make_config(HOUSE, ["model.width=16"]), tmp_path / "tuned.toml")
    _, cautions = with_tuned(make_config(HOUSE, ["train.steps=50"]), tmp_path / "tuned.toml")
    assert cautions == ["train.steps is 50, the values were carried to 10: set that, or tune for yours to be sure"]


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--target", "loops=4,layers=1", "--proxy", "loops=8"], "the target has loops = 4, less than the proxy's 8"),
        (["--target", "loop=4"], "--target has no axis 'loop': did you mean 'loops'?"),
        (["--target", "loops=many"], "is not axis=whole number"),
        (["--target", "width=40"], "width 40 is not a multiple of head_dim 16"),
        (["--target", "loops=4", "--budget", "soon"], "the budget 'soon' is no time: write 90s, 10m or 2h"),
        (["--target", "loops=4", "--budget", "0.001s"], "is too small: one trial takes about"),
        (["--target", "loops=4", "--tune", "lr,strenth"], "cannot tune 'strenth': did you mean 'strength'?"),
        (["--target", "loops=4", "--executor", "rai"], "unknown executor 'rai': did you mean 'ray'?"),
        (["--target", "loops=4", "--storage", "x.db"], "is no address of a database: such as sqlite:///trials.db"),
        (
            ["--target", "loops=4", "--storage", "postgresql://nobody@127.0.0.1:1/x"],
            "the storage postgresql://127.0.0.1:1/x ",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(arguments, words, tmp_path, capsys):
    (tmp_path / "small.toml").write_text(make_config(HOUSE).to_toml())
    assert main(["tune", str(tmp_path / "small.toml"), *arguments, "--out", str(tmp_path / "t")]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said
    assert not (tmp_path / "t").exists()


def test_a_folder_of_another_tuning_is_refused_untouched(tuned, tmp_path):
    folder, _ = tuned
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.name != "study.lock"}
    with pytest.raises(UserError, match=r"another tuning \(user_code.place .*:objective -> .*:drifting\)"):
        tune(settings("drifting"), folder, executor=Inline())
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a tuning"):
        tune(settings(), tmp_path, executor=Inline())
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_database_mirrors_the_trials_for_the_dashboard(tmp_path):
    import optuna

    url = f"sqlite:///{tmp_path}/trials.db"
    plan = tune(settings("sometimes"), tmp_path / "t", executor=Inline(), storage=url)
    again = tune(settings("sometimes"), tmp_path / "t", executor=Inline(), storage=url)
    (name,) = optuna.study.get_all_study_names(url)
    shown = optuna.load_study(study_name=name, storage=url).trials
    assert len(shown) == plan["provenance"]["trials"] == again["provenance"]["trials"]
    assert {trial.state.name for trial in shown} == {"COMPLETE", "FAIL"}


def test_verify_runs_only_code_that_the_caller_names_and_that_did_not_change(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = Path("mine.py")
    shutil.copy(FILE, code)
    tune(replace(settings(), user_code=UserCode.at(f"{code}:objective", "objective")), Path("t"), executor=Inline())
    command = ["verify", "t", "--loops", "4"]
    assert main(command) == 2
    assert f"add --objective {code}:objective" in capsys.readouterr().err
    assert main([*command, "--objective", f"{FILE}:objective"]) == 2
    assert "was tuned with the objective" in capsys.readouterr().err
    code.write_text(code.read_text() + "\n\ndef more():\n    return 1\n")
    assert main([*command, "--objective", f"{code}:objective"]) == 2
    assert "mine.py changed since" in capsys.readouterr().err
