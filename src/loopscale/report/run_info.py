"""The numbers behind a training run's page, read from its folder."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from loopscale.errors import UserError
from loopscale.records import Provenance, clean, content_hash, read_record, read_steps

Series = tuple[tuple[int, float], ...]

MOST_POINTS = 300


@dataclass(frozen=True)
class RunInfo:
    """A run as read. `profiles` holds (step, RMS of the stream after each visit)."""

    name: str
    last_step: int
    series: dict[str, Series]
    profiles: tuple[tuple[int, tuple[float | None, ...]], ...]
    config: dict[str, Any]
    provenance: dict[str, Any]


def run_info(run_dir: Path) -> RunInfo:
    """Read metrics.jsonl, and config.toml and provenance.json where present.

    Raises `UserError` when the folder holds no run, or a record is damaged. A last line cut off by a killed run is
    ignored: that is the state in which a run may be resumed.
    """
    path = run_dir / "metrics.jsonl"
    if not run_dir.is_dir():
        raise UserError(f"there is no folder {run_dir}: give the folder that `loopscale train` wrote")
    if not path.exists():
        raise UserError(f"{run_dir} holds no metrics.jsonl: give the folder that `loopscale train` wrote")
    lines = read_steps(path)
    if not lines:
        raise UserError(f"{path} holds no step yet: wait for the first step, or run `loopscale train` again")
    numbers = ("loss", "val_loss", "grad_norm", "tokens_per_second", "lr")
    profiles = tuple(
        (line["step"], tuple(_finite(rms) for rms in line["stream_rms"]))
        for line in lines
        if isinstance(line.get("stream_rms"), list) and line["stream_rms"]
    )
    fix = "restore it, or delete it to make the page without it"
    origin = run_dir / "provenance.json"
    provenance = read_record(origin, Provenance) if origin.exists() else Provenance()
    config = _config(run_dir / "config.toml", fix)
    if provenance.config is not None and config and content_hash(config) != provenance.config:
        raise UserError(
            f"{run_dir / 'config.toml'} was edited since the run was trained with it: {fix}, or resume the run"
        )
    return RunInfo(
        name=clean(run_dir.resolve().name),
        last_step=lines[-1]["step"],
        series={name: thinned(_series(lines, name), MOST_POINTS) for name in numbers},
        profiles=profiles,
        config=config,
        provenance=clean(provenance.model_dump(exclude_unset=True)),
    )


def thinned(series: Series, most: int) -> Series:
    """Keep at most `most` points: of each stretch the lowest and the highest, so that no spike is lost.

    >>> thinned(((0, 1.0), (1, 9.0), (2, 3.0), (3, 2.0), (4, 2.5), (5, 2.2)), 4)
    ((0, 1.0), (1, 9.0), (3, 2.0), (4, 2.5))
    """
    if len(series) <= most:
        return series
    stretches = most // 2
    bounds = [round(i * len(series) / stretches) for i in range(stretches + 1)]
    kept: set[tuple[int, float]] = set()
    for start, end in pairwise(bounds):
        kept |= {extreme(series[start:end], key=lambda point: point[1]) for extreme in (min, max)}
    return tuple(sorted(kept))


def _series(lines: Iterable[dict[str, Any]], name: str) -> Series:
    found = ((line["step"], _finite(line.get(name))) for line in lines)
    return tuple((step, value) for step, value in found if value is not None)


def _finite(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _config(path: Path, fix: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return clean(tomllib.loads(path.read_text(encoding="utf-8")))  # type: ignore[no-any-return]
    except (OSError, ValueError) as cause:
        raise UserError(f"{path} is damaged (not valid TOML): {fix}") from cause
