"""Tasks of lm-evaluation-harness on a run or an exported folder, at any number of loops; local tasks need no network."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from loopscale.errors import UserError, between, first_line, nearest, require, settings, transformers
from loopscale.train.generation import MOST_LOOPS
from loopscale.train.run import Warn, open_run

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True)
class Evaluation:
    """How tasks are run; `evaluate_tasks` takes each as a keyword.

    loops: N of the evaluation (default: the training's). include: a folder of task files. limit: documents of each
    task. Nothing is downloaded unless `online`. model: the place of the user's factory, which a run of a user model needs.

    Raises `UserError` for values out of range.
    """

    loops: int | None = None
    include: Path | None = None
    limit: int | None = None
    batch_size: int = 8
    online: bool = False
    model: str | None = None
    warn: Warn = lambda sentence: None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1 document, not {self.limit}")
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.loops is not None:
            between("loops", self.loops, 1, MOST_LOOPS)


def evaluate_tasks(
    place: str | Path,
    tasks: Sequence[str],
    **keywords: Any,
) -> dict[str, Any]:
    """Give the results of each task: {"tasks": {name: {metric: value, ...}}, "loops", "limit", ...}.

    place: a run folder or an exported one. tasks: names, or YAML files of tasks. Keywords: the fields of `Evaluation`.

    Raises `UserError` for an unknown task, a task whose data are not here, values out of range, and a place that is neither
    kind of folder.
    """
    chosen = settings(Evaluation, keywords, evaluate_tasks)
    if not any((Path(place) / name).is_file() for name in ("config.toml", "config.json")):
        there = "is neither a run nor an exported folder" if Path(place).is_dir() else "is no folder"
        raise UserError(f"{place} {there}: give what loopscale train or export wrote")
    folders, names = _named(tasks, chosen.include)
    if not chosen.online:
        _go_offline()
    require("lm_eval", "eval")
    harness, library = import_module("lm_eval.evaluator"), import_module("lm_eval.models.huggingface")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(folders, names)
    model, tokenizer, context = _model(Path(place), chosen)
    wrapped = library.HFLM(
        pretrained=model, tokenizer=tokenizer, max_length=context, batch_size=chosen.batch_size, device="cpu"
    )
    try:
        found = harness.simple_evaluate(
            wrapped, tasks=list(names), task_manager=manager, limit=chosen.limit, verbosity="ERROR"
        )
    except (ConnectionError, FileNotFoundError) as problem:
        raise UserError(
            f"the data of {', '.join(names)} are not on this machine ({first_line(problem)}): name a task with local data, "
            "or pass --online"
        ) from None
    return {
        "place": str(place),
        **_scale(model, Path(place), chosen.loops),
        "limit": chosen.limit,
        "tasks": {name: _numbers(values) for name, values in found["results"].items()},
        "documents": {name: counts["effective"] for name, counts in found["n-samples"].items()},
        "versions": {"lm_eval": _version("lm_eval"), "transformers": transformers().__version__},
    }


def _manager(folders: list[Path], names: list[str]) -> Any:
    """Index the tasks of the folders, and the harness's own thousands only where a name is not among them."""
    kind, places = import_module("lm_eval.tasks").TaskManager, [str(folder) for folder in folders] or None
    manager = kind(include_path=places, include_defaults=False) if places else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = kind(include_path=places)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(f"unknown task {unknown[0]!r}: {_near(unknown[0], manager.all_tasks)}")
    return manager


def _go_offline() -> None:
    """Forbid the network: by the environment, and, where libraries have read it already, by their constants."""
    for variable in _OFFLINE:
        os.environ[variable] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _named(tasks: Sequence[str], include: Path | None) -> tuple[list[Path], list[str]]:
    """Return folders of task files, and names of tasks; a YAML file stands for the task that it describes."""
    folders, names = [] if include is None else [include], []
    if include is not None and not include.is_dir():
        raise UserError(f"{include} is not a folder of task files: give one with --include")
    for task in tasks:
        if task.endswith((".yaml", ".yml")):
            path = Path(task)
            folders.append(path.resolve().parent)
            names.append(_task_name(path))
        else:
            names.append(task)
    if not names:
        raise UserError("no task is named: give --tasks NAME, or the YAML file of a task")
    return list(dict.fromkeys(folders)), names


def _task_name(path: Path) -> str:
    yaml = require("yaml", "eval")
    try:
        described = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        return str(described["task"])
    except OSError as problem:
        raise UserError(f"cannot read the task file {path} ({problem.strerror})") from None
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        raise UserError(f"{path} does not describe a task: it needs a line 'task: NAME'") from None


def _scale(model: Any, place: Path, loops: int | None) -> dict[str, Any]:
    """Give N and eps; of a user model N alone, since what it does with its rule is its own affair."""
    if hasattr(model.config, "loops"):
        return {"loops": model.config.loops, "residual_scale": model.model.residual_scale(model.config.loops)}
    return {"loops": loops or open_run(place).config.model.loops}


def _model(place: Path, chosen: Evaluation) -> tuple[Any, Any, int]:
    """Give model, tokenizer and context of a run, or of a folder that `loopscale export` wrote."""
    loops = chosen.loops
    if (place / "config.toml").is_file():
        from loopscale.integrations.export import for_transformers
        from loopscale.train.load_model import load_model

        trained = load_model(place, chosen.warn, model=chosen.model, loops=None if chosen.model is None else loops)
        model, tokenizer = for_transformers(trained)
        if trained.user is None:
            model.config.loops = loops or model.config.loops
        return model, tokenizer, trained.run.config.data.context
    from loopscale.integrations.huggingface import LoopedForCausalLM

    model = LoopedForCausalLM.from_pretrained(place).eval()
    model.config.loops = loops or model.config.loops
    tokenizer = transformers().AutoTokenizer.from_pretrained(place)
    return model, tokenizer, int(getattr(model.config, "max_position_embeddings", 2048))


def _near(name: str, known: Sequence[str]) -> str:
    """Name the nearest task; the harness knows thousands, which are not listed."""
    return nearest(name, known).partition(" known: ")[0] + " (local tasks: --include FOLDER, or give the YAML file)"


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Return {"acc": 0.5, "acc_stderr": 0.1, ...}: the harness's names without its filter, where that is none."""
    return {
        key.removesuffix(",none"): value for key, value in values.items() if isinstance(value, float) and value == value
    }


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
