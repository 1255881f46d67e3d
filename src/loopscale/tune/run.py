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
from statistics import fmean
from typing import Any

from loopscale.errors import UserError, require
from loopscale.files import write_json, write_new_json, write_text
from loopscale.study import Executor, LocalProcesses, lanes
from loopscale.study.trial import run_trial
from loopscale.train import TrainConfig, provenance
from loopscale.tune.cost import trial_flops
from loopscale.tune.ledger import Ledger
from loopscale.tune.plan import transfer_plan
from loopscale.tune.search import Budget, Search
from loopscale.tune.settings import TuneSettings, start
from loopscale.tune.storage import kept, open_storage

OnRecord = Callable[[dict[str, Any], int], None]
OnChecked = Callable[[dict[str, Any]], None]


def tune(
    settings: TuneSettings,
    folder: Path,
    *,
    executor: Executor | None = None,
    budget_seconds: float | None = None,
    storage: str | None = None,
    on_record: OnRecord = lambda record, count: None,
    on_checked: OnChecked = lambda description: None,
    started: float | None = None,
) -> dict[str, Any]:
    """Tune on the proxy and write the plan for the target; returns what `plan.json` holds.

    Stop it anywhere and call it again, here or on another machine that reaches the storage: finished trials are kept.
    `on_record(record, finished)` is called after each trial, `on_checked(description)` before the first, with what
    provenance says of the data, or of a model of the user's own (its `warnings` too).

    The budget counts from `started` (of `time.monotonic`; default: now), so looking at the model and starting processes are
    in it; trials that have begun are finished.

    Raises `UserError`: a folder of another study, a budget too small for one trial (says its cost), data or a model that
    cannot be used, a storage that cannot be reached, or no trial that finishes.
    """
    started = time.monotonic() if started is None else started
    runner = executor or LocalProcesses()
    require("optuna", "sweep")
    check_folder(folder, settings)
    vocab_size, description = probe(settings)
    on_checked(description)
    earlier = sum(record["seconds"] for record in known_trials(folder, "trials").values())
    one = first_estimate(settings, folder, budget_seconds, lanes(runner))
    budget = Budget(budget_seconds, one, started, earlier)
    with kept(storage, folder):
        records = _search(settings, folder, runner, budget, storage, on_record)
    for record in records.values():
        write_trial(folder, record)
    plan = transfer_plan(settings, list(records.values()))
    plan["cost"] = costs(settings, list(records.values()), vocab_size)
    plan["provenance"] = {**provenance(), "data": description, "trials": len(records), **_errors(records)}
    _keep_verification(folder, plan)
    write_json(folder / "plan.json", plan)
    config = TrainConfig.model_validate(plan["target"]["config"])
    text = config.to_toml() if settings.own is None else config.to_own_toml()
    write_text(folder / "tuned.toml", _heading(settings, folder, plan) + text)
    return plan


def _search(
    settings: TuneSettings, folder: Path, runner: Executor, budget: Budget, storage: str | None, on_record: OnRecord
) -> dict[str, dict[str, Any]]:
    reached = open_storage(storage, folder)
    if not write_new_json(folder / "tune.json", settings.to_json()):
        check_folder(folder, settings)  # somebody was faster: the same tuning, or another
    ledger = Ledger(reached, settings)
    known = known_trials(folder, "trials")
    for record in ledger.records().values():
        write_trial(folder, record)
    # The file comes first: a trial is not lost when the storage is away just then.
    Search(settings, ledger, budget, known, lambda record: write_trial(folder, record), on_record).run(runner)
    return ledger.records()


def known_trials(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The finished trials in a folder, by key; raises `UserError` for a damaged one."""
    return {path.stem: read_json(path) for path in sorted((folder / kind).glob("*.json"))}


def first_estimate(settings: TuneSettings, folder: Path, budget_seconds: float | None, slots: int) -> float:
    """Seconds of one trial: of those in the folder, else measured; 0 without a budget, which then costs nothing.

    Raises `UserError` when the budget holds not even one trial.
    """
    if budget_seconds is None:
        return 0.0
    known = [record["seconds"] for record in known_trials(folder, "trials").values()]
    if known:
        return float(fmean(known))
    one = trial_seconds(settings)
    check_budget(budget_seconds, one, slots)
    return one


def _errors(records: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    return {"errors": [record["error"] for record in records.values() if "error" in record]}


def _heading(settings: TuneSettings, folder: Path, plan: dict[str, Any]) -> str:
    """Comments on top of tuned.toml: whoever finds the file alone knows what it is."""
    lines = [plan["sentence"], "Written by loopscale tune; every value with its reason and source is in plan.json."]
    if settings.own is not None:
        lines.append(f"The {settings.own.kind} is {settings.own.place}: `loopscale train` would train the house model.")
    if settings.own is not None and settings.own.kind == "model":
        lines.append(f"The loss of yours at the target: {own_code(settings.own.place, folder / 'tuned.toml')}")
    lines += [f"Warning: {said}." for said in plan["provenance"]["data"].get("warnings", [])]
    return "".join(f"# {line}\n" for line in lines) + "\n"


def own_code(place: str, tuned: Path) -> str:
    """Python, one line, that trains a model of the user's own at the target and prints its validation loss.

    >>> own_code("mine.py:make_model", Path("tuned.toml")).partition("; ")[2]
    "print(fit_own('mine.py:make_model', load_values('tuned.toml')).val_loss)"
    """
    names = "from loopscale.train import fit_own, load_values"
    return f"{names}; print(fit_own({place!r}, load_values({str(tuned)!r})).val_loss)"


def _keep_verification(folder: Path, plan: dict[str, Any]) -> None:
    """A plan that did not change keeps what verification found."""
    try:
        old = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if old.get("verification") and old["target"] == plan["target"]:
        plan["verification"] = old["verification"]


def write_trial(folder: Path, record: dict[str, Any], kind: str = "trials") -> None:
    """Keep a record as a file, once."""
    path = folder / kind / f"{record['key']}.json"
    if not path.exists():
        write_json(path, record)


def probe(settings: TuneSettings) -> tuple[int, dict[str, Any]]:
    """Vocabulary and the data's description; nothing is written but the token cache.

    Raises `UserError` when the data, or the user's own model, cannot be used.
    """
    config = settings.config(settings.proxy, start(settings))
    target = settings.config(
        settings.target, start(settings)
    )  # what cannot be built is said before, not after the trials
    if settings.own is not None:
        return 256, settings.own.check(config, target)
    dataset = config.load_data()
    return dataset.vocab_size, dataset.description


def trial_seconds(settings: TuneSettings) -> float:
    """Seconds of one trial here: a few steps in this process, one thread, counted up; an objective is called once."""
    import torch

    config = settings.config(settings.proxy, start(settings))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if settings.own is not None and settings.own.kind == "objective":
            return _seconds(settings, config)
        _seconds(settings, _short(config, 1, 1))  # the first step of a process pays for what is loaded lazily
        few = min(4, config.train.steps)
        each = _seconds(settings, _short(config, few, 1)) / (3 * few + 1)
        return each * (3 * config.train.steps + config.train.eval_batches)
    finally:
        torch.set_num_threads(threads)


def _seconds(settings: TuneSettings, config: TrainConfig) -> float:
    began = time.perf_counter()
    run_trial("probe", {}, settings.job_config(config))
    return time.perf_counter() - began


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
    elif folder.exists() and (not folder.is_dir() or any(not _begun(inside) for inside in folder.iterdir())):
        raise UserError(f"{folder} exists and is not a tuning: name an empty or new folder with --out")


def _begun(path: Path) -> bool:
    """Whether this is what another process of a tuning makes first."""
    return path.name.startswith(("journal.log", ".tune.json.", "tune.json"))


def read_json(path: Path) -> Any:
    """Read JSON; raises `UserError` when it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise UserError(f"cannot read {path} ({cause.strerror}): name the folder that loopscale tune wrote") from None
    except ValueError:
        raise UserError(f"{path} is damaged (not valid JSON): tune again, finished trials are kept") from None


def costs(settings: TuneSettings, records: list[dict[str, Any]], vocab_size: int) -> dict[str, Any]:
    """FLOPs spent, and those of a sweep of as many trials at the target."""
    seconds = sum(record["seconds"] for record in records)
    own = settings.own is not None
    spent = sum(_flops_of(record, vocab_size, own) for record in records)
    target = trial_flops(settings.config(settings.target, start(settings)), vocab_size, own)
    return {
        "vocab_size": vocab_size,
        "tune_flops": spent,
        "target_trial_flops": target,
        "direct_flops": target * len(records),
        "share_of_direct": spent / (target * len(records)),
        "trial_seconds": round(seconds / len(records), 3),
        "seconds": round(seconds, 3),
        "counted": "N L d^2, for ratios only" if own else "matrix products, forward and backward",
    }


def _flops_of(record: dict[str, Any], vocab_size: int, own: bool) -> float:
    values = {name: part for name, part in record["config"].items() if name not in ("own", "stop")}
    config = TrainConfig.model_validate(values)
    steps = record["steps"] if record["loss"] is None else None
    return trial_flops(config, vocab_size, own, steps)
