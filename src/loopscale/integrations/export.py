"""`loopscale export`: a run as a Hugging Face folder of weights, config, tokenizer and model card."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import loopscale
from loopscale.errors import UserError, transformers
from loopscale.files import folder_aside
from loopscale.parameterization import Depth, get_rule
from loopscale.records import Provenance, read_record, read_steps
from loopscale.train.load_model import Trained, load_model
from loopscale.train.run import Warn


def export_run(
    run_dir: str | Path, out: str | Path, *, model: str | None = None, warn: Warn = lambda sentence: None
) -> dict[str, Any]:
    """Write the newest whole checkpoint of a run to the new folder `out`; give what was written.

    `AutoModelForCausalLM.from_pretrained(out)` reads it after `import loopscale.integrations.huggingface`. model: the place
    of the user's factory, which a run of a user model needs; what it builds must be a model of transformers.

    Raises `UserError` when the run has no checkpoint, the model has no such format, `out` is taken, or the disk refuses;
    nothing is left behind then.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and is no empty folder: name another one")
    transformers()
    trained = load_model(run_dir, warn, model=model)
    if trained.user is not None and not isinstance(trained.model, transformers().PreTrainedModel):
        raise UserError(
            f"{model} builds a {type(trained.model).__name__}, which is not a model of transformers: its "
            f"weights are {run_dir}/checkpoints/step-{trained.step:06d}/*.safetensors, for load_state_dict"
        )
    exported, tokenizer = for_transformers(trained)
    with folder_aside(out) as aside:
        exported.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        (aside / "README.md").write_text(model_card(trained), encoding="utf-8")
    return {
        "out": str(out),
        "run": str(run_dir),
        "step": trained.step,
        "parameters": sum(p.numel() for p in exported.parameters()),
        "files": sorted(path.name for path in out.iterdir()),
    }


def for_transformers(trained: Trained) -> tuple[Any, Any]:
    """Return model and fast tokenizer of transformers, with the weights of a run."""
    from loopscale.integrations.huggingface import LoopedConfig, LoopedForCausalLM
    from loopscale.integrations.tokenizer import fast_tokenizer

    context = trained.run.config.data.context
    tokenizer = fast_tokenizer(trained.tokenizer, context)
    if trained.user is not None:
        if isinstance(trained.model, transformers().PreTrainedModel):
            return trained.model, tokenizer
        from loopscale.integrations.hf_model import UserCausalLM

        return UserCausalLM(trained.model, tokenizer.vocab_size, context), tokenizer
    special = {f"{name}_token_id": 0 for name in ("bos", "eos", "pad")}
    config = LoopedConfig.of(trained.model.config, max_position_embeddings=context, **special)
    model = LoopedForCausalLM(config)
    model.model.load_state_dict(trained.model.state_dict())
    return model.eval(), tokenizer


def model_card(trained: Trained) -> str:
    """Write the README.md of the folder: what it is, how it was trained, how to use it."""
    run, config = trained.run, trained.run.config.model
    origin = read_record(run.path / "provenance.json", Provenance)
    rule = get_rule(config.rule)

    def eps(loops: int) -> float:
        depth = Depth(loops, config.layers)
        return float(rule.residual_scale(depth, config.strength, config.base_layers).value)

    last = _last_losses(run.metrics)
    rows = {
        "loops N (a run-time knob)": config.loops,
        "unique layers L": config.layers,
        "width": config.width,
        "rule": f"{config.rule}, strength {config.strength:g}: "
        f"residual scale {eps(config.loops):.4g} at N = {config.loops}",
        "parameters": f"{sum(p.numel() for p in trained.model.parameters()):,}",
        "context": run.config.data.context,
        "tokenizer": trained.tokenizer.name,
        "data": origin.data.get("source", "not recorded"),
        "training": f"{trained.step} of {run.config.train.steps} steps, {run.config.optim.optimizer}, "
        f"lr {run.config.optim.lr:g}, seed {run.config.train.seed}",
        **last,
        "made with": f"loopscale {loopscale.__version__}, torch {origin.torch}",
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    if trained.user is not None:
        return _card("card_of_user_model.md", table=table, place=trained.user.place)
    loops = config.loops
    scales = ", ".join(f"{eps(n):.4g} at N = {n}" for n in sorted({max(1, loops // 2), loops, 2 * loops}))
    return _card("card.md", table=table, loops=loops, twice=2 * loops, scales=scales)


def _card(name: str, **blanks: object) -> str:
    return (files("loopscale.integrations") / name).read_text(encoding="utf-8").format(**blanks)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _last_losses(metrics: Path) -> dict[str, str]:
    """Give the last validation loss of the run, where there is one."""
    known = [line for line in read_steps(metrics) if line.get("val_loss") is not None]
    if not known:
        return {}
    return {"validation loss": f"{known[-1]['val_loss']:.4f} nats per token at step {known[-1]['step']}"}
