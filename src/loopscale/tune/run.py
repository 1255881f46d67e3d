"""Run a tuning to its end in a folder: `tune.json`, the trials, `plan.json`, `tuned.toml`.

TUNING/
  tune.json      the settings; the identity of the folder
  journal.log    the shared storage (unless another was named)
  trials/        one file per finished trial, for people and pages
  plan.json      the tuned values, every value at the target, intervals, what verification found
  tuned.toml     the target's config, for `loopscale train target.toml --from tuned.toml`
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopscale.atomic import write_json, write_text
from loopscale.errors import UserError
from loopscale.train import TrainConfig, provenance
from loopscale.transfer import Executor, LocalProcesses
from loopscale.transfer.trial import run_trial
from loopscale.tune.cost import trial_flops
from loopscale.tune.plan import transfer_plan
from loopscale.tune.search import Budget, Search
from loopscale.tune.settings import TuneSettings, start
from loopscale.tune.storage import Ledger, open_storage

OnRecord = Callable[[dict[str, Any], int], None]


def tune(
    settings: TuneSettings,
    folder: Path,
    *,
    executor: Executor | None = None,
    budget_seconds: float | None = None,
    storage: str | None = None,
    on_record: OnRecord = lambda record, count: None,
) -> dict[str, Any]:
    """Tune on the proxy and write the plan for the target; returns what `plan.json` holds.

    Stop it anywhere and call it again, here or on another machine that reaches the storage: finished trials are kept.
    `on_record(record, finished)` is called after each trial.

    Raises `UserError`: a folder of another study, a budget too small for one trial (says its cost), data or a model that
    cannot be used, a storage that cannot be reached, or no trial that finishes.
    """
    runner = executor or LocalProcesses()
    vocab_size, description, one = probe(settings)
    check_budget(budget_seconds, one, runner.slots)
    check_folder(folder, settings)
    ledger = Ledger(open_storage(storage, folder), settings)
    write_json(folder / "tune.json", settings.to_json())
    said = {record["key"] for record in ledger.records().values()}

    def keep(record: dict[str, Any], count: int) -> None:
        write_trial(folder, record)
        on_record(record, count)

    for key, record in ledger.records().items():
        if key in said:
            write_trial(folder, record)
    Search(settings, ledger, Budget(budget_seconds, one), keep).run(runner)
    records = ledger.records()
    for record in records.values():
        write_trial(folder, record)
    plan = transfer_plan(settings, list(records.values()))
    plan["cost"] = costs(settings, list(records.values()), vocab_size, one)
    plan["provenance"] = {**provenance(), "data": description, "trials": len(records)}
    _keep_verification(folder, plan)
    write_json(folder / "plan.json", plan)
    write_text(folder / "tuned.toml", TrainConfig.model_validate(plan["target"]["config"]).to_toml())
    return plan


def _keep_verification(folder: Path, plan: dict[str, Any]) -> None:
    """A plan that did not change keeps what verification found."""
    try:
        old = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if old.get("verification") and old["target"] == plan["target"]:
        plan["verification"] = old["verification"]


def write_trial(folder: Path, record: dict[str, Any]) -> None:
    """Keep a record as a file, once."""
    path = folder / "trials" / f"{record['key']}.json"
    if not path.exists():
        write_json(path, record)


def probe(settings: TuneSettings) -> tuple[int, dict[str, Any], float]:
    """Vocabulary, the data's description, and the seconds of one trial here; nothing is written but the token cache.

    Raises `UserError` when the data, or the user's own model, cannot be used.
    """
    config = settings.config(settings.proxy, start(settings))
    if settings.own is not None:
        description = settings.own.check(config)
        vocab_size = 256
    else:
        dataset = config.load_data()
        vocab_size, description = dataset.vocab_size, dataset.description
    return vocab_size, description, _trial_seconds(settings, config)


def _trial_seconds(settings: TuneSettings, config: TrainConfig) -> float:
    """Time a few steps in this process, one thread, and count up; an objective is timed by calling it once."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if settings.own is not None and settings.own.kind == "objective":
            began = time.perf_counter()
            run_trial("probe", {}, settings.job_config(config))
            return time.perf_counter() - began
        few = min(4, config.train.steps)
        short = _short(config, few, 1)
        began = time.perf_counter()
        run_trial("probe", {}, settings.job_config(short))
        each = (time.perf_counter() - began) / (3 * few + 1)
        return each * (3 * config.train.steps + config.train.eval_batches)
    finally:
        torch.set_num_threads(threads)


def _short(config: TrainConfig, steps: int, eval_batches: int) -> TrainConfig:
    record = config.model_dump(mode="json")
    record["train"].update(steps=steps, eval_batches=eval_batches)
    return TrainConfig.model_validate(record)


def check_budget(seconds: float | None, one: float, slots: int) -> None:
    """Raise `UserError` when the budget holds not even one trial."""
    if seconds is not None and seconds < one:
        raise UserError(
            f"a budget of {seconds:g} s is too small: one trial takes about {one:.1f} s here, and a useful tuning "
            f"{20 * one / slots:.0f} s: raise --budget, or make the proxy smaller"
        )


def check_folder(folder: Path, settings: TuneSettings) -> None:
    """Raise `UserError` when the folder holds something else."""
    path = folder / "tune.json"
    if path.exists():
        if read_json(path) != json.loads(json.dumps(settings.to_json())):
            raise UserError(f"{folder} holds another tuning: give this one its own --out, or delete that folder")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a tuning: name an empty or new folder with --out")


def read_json(path: Path) -> Any:
    """Read JSON; raises `UserError` when it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise UserError(f"cannot read {path} ({cause.strerror}): name the folder that loopscale tune wrote") from None
    except ValueError:
        raise UserError(f"{path} is damaged (not valid JSON): tune again, finished trials are kept") from None


def costs(settings: TuneSettings, records: list[dict[str, Any]], vocab_size: int, seconds: float) -> dict[str, Any]:
    """FLOPs spent, and those of a sweep of as many trials at the target."""
    own = settings.own is not None
    spent = sum(_flops_of(record, vocab_size, own) for record in records)
    target = trial_flops(settings.config(settings.target, start(settings)), vocab_size, own)
    return {
        "vocab_size": vocab_size,
        "tune_flops": spent,
        "target_trial_flops": target,
        "direct_flops": target * len(records),
        "share_of_direct": spent / (target * len(records)),
        "trial_seconds": round(seconds, 3),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "counted": "N L d^2, for ratios only" if own else "matrix products, forward and backward",
    }


def _flops_of(record: dict[str, Any], vocab_size: int, own: bool) -> float:
    values = {name: part for name, part in record["config"].items() if name not in ("own", "stop")}
    config = TrainConfig.model_validate(values)
    steps = record["steps"] if record["loss"] is None else None
    return trial_flops(config, vocab_size, own, steps)
