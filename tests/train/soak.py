"""Kill a training at random moments, again and again, and continue it: no step may be lost or changed.

python tests/train/soak.py --kills 200 [--out records/kill_soak.json]

Each life is a real process that is killed with SIGKILL after a random time: while it reads, steps, writes metrics, writes
or renames a checkpoint. Forked from a server that has torch imported, a life costs a tenth of a second, not four.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from ranks import SERVER, child

from loopscale.files import write_json
from loopscale.train import TrainConfig, checkpoint, make_config, provenance, resume_run, train_run


def life(values: dict[str, Any], out: str) -> None:
    """Begin or continue the run."""
    config, path = TrainConfig.model_validate(values), Path(out)
    if (path / "config.toml").exists():
        resume_run(path)
    else:
        train_run(config, path)


def losses(run: Path) -> list[tuple[int, float]]:
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return [
        (line["step"], line["loss"])
        for line in map(json.loads, text.splitlines()[:-1] if text[-1:] != "\n" else text.splitlines())
    ]


def newest(run: Path) -> int:
    """The last step of a whole checkpoint."""
    return max(
        (checkpoint.step_of(path) for path in checkpoint.listed(run / "checkpoints") if not checkpoint.damage(path)),
        default=0,
    )


def soak(values: dict[str, Any], kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Give what happened; raises `AssertionError` when a step was lost or another than in the undisturbed run."""
    chance, count, reached, runs = random.Random(seed), 0, [], 0
    config = TrainConfig.model_validate(values)
    train_run(config, folder / "whole")
    whole = losses(folder / "whole")
    while count < kills:
        run, done, runs = folder / f"run-{runs}", 0, runs + 1
        while count < kills:
            here, there = SERVER.Pipe()
            process = SERVER.Process(target=child, args=({}, there, life, (values, str(run))), daemon=True)
            began = time.monotonic()
            process.start()
            there.close()
            wait = chance.choice([0.05, 0.3, 1.0]) * chance.random()
            while process.is_alive() and time.monotonic() - began < wait:
                time.sleep(0.002)
            ended = not process.is_alive()
            process.kill()
            process.join()
            if ended:
                said = here.recv() if here.poll() else ("lost", None)
                assert said[0] == "result", f"a life ended with {said}"
                break
            count += 1
            after = newest(run) if run.exists() else 0
            assert after >= done, f"the checkpoint went back from step {done} to {after}"
            written = losses(run)
            assert written == whole[: len(written)], "a step has another loss"
            assert len(written) - after <= values["train"]["checkpoint_every"], "more than one interval is lost"
            done = after
            reached.append(len(written))
        else:
            resume_run(run) if (run / "config.toml").exists() else train_run(config, run)
        assert losses(run) == whole, "the finished run is another one"
        name = f"checkpoints/step-{config.train.steps:06d}/model.safetensors"
        assert (run / name).read_bytes() == (folder / "whole" / name).read_bytes(), "other weights"
    return {"kills": count, "runs": runs, "steps_at_kills": sorted(reached)}


def small(**train: Any) -> dict[str, Any]:
    """A training of a second, with a checkpoint every few steps."""
    settings = {"steps": 200, "checkpoint_every": 5, "eval_every": 50, "device": "cpu", "eval_batches": 1, **train}
    shape = {"width": 16, "head_dim": 8, "loops": 2}
    data = {"path": "synthetic:copy", "context": 16, "batch_size": 4}
    return make_config({"model": shape, "data": data, "train": settings}).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(small(), options.kills, options.seed, Path(folder))
    record = {
        "claim": "a training killed with SIGKILL at random moments and continued loses no step and changes no loss",
        **{key: value for key, value in result.items() if key != "steps_at_kills"},
        "steps_at_kills_median": result["steps_at_kills"][len(result["steps_at_kills"]) // 2],
        "lost_or_changed_steps": 0,
        "checkpoint_every": 5,
        "steps_a_run": 200,
        "seed": options.seed,
        "seconds": round(time.monotonic() - began),
        "provenance": provenance(),
    }
    print(f"{result['kills']} kills in {result['runs']} runs, no step lost or changed, {record['seconds']} s")
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
