"""Parameter groups for the Trainer of transformers: its `optimizers=`, from its own arguments."""

from __future__ import annotations

from typing import Any

import torch

from loopscale.errors import UserError, expect, transformers
from loopscale.optim import build_optimizer
from loopscale.parameterization import OPTIMIZERS, Width


class LoopSampler(transformers().TrainerCallback):  # type: ignore[misc, name-defined, unused-ignore]
    """Draw N of every training step from the config's `sampler`: `Trainer(..., callbacks=[LoopSampler(model)])`.

    A draw is a function of the Trainer's seed and step, so a resumed training repeats it. Evaluation uses `config.loops`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw N for the step."""
        network = self.model.config.network()
        self.model.drawn_loops = network.sampler.draw(state.global_step, state.max_steps, args.seed, network.loops)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the draw."""
        self.model.drawn_loops = None


def trainer_optimizers(
    model: Any, args: Any, optimizer: str = "adamw", **parameterization: Any
) -> tuple[torch.optim.Optimizer, None]:
    """Make what `Trainer(model=model, args=args, optimizers=...)` takes; the schedule stays the Trainer's.

    Rate, decay, betas and epsilon are those of the `TrainingArguments`; the rule's multipliers are applied per role.
    `model` is a `LoopedForCausalLM`, any model that `param_groups` understands (after `attach` or `convert`, with a `Loop`
    inside, or with `roles=`, `depth=` in `parameterization`), or one of these with PEFT adapters: a LoRA matrix has the
    role of the matrix that it adapts.

    transformers' own muP fields in a config (`mup`, `mup_base_width`) state width and base, unless `width=` does.

    Raises `UserError` for a trainable parameter outside the model that the rule knows, an `optim` of the arguments that
    would not be followed, and what `build_optimizer` raises.

    Assumption: adapters follow the rate of the weights that they adapt. They are read by all N visits, as those are.
    """
    expect(args, hasattr(args, "learning_rate"), "TrainingArguments", "trainer_optimizers(model, args)")
    asked = getattr(args, "optim", "adamw")
    asked = str(getattr(asked, "value", asked))
    if not asked.startswith(("adamw", optimizer)):
        instead = (
            f"trainer_optimizers(model, args, {asked!r})" if asked in OPTIMIZERS else f"one of {', '.join(OPTIMIZERS)}"
        )
        raise UserError(
            f"args.optim is {asked!r} and the groups would train with {optimizer}: take {instead}, or leave optim out"
        )
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = {id(parameter) for parameter in base.parameters()}
    strange = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    if strange:
        raise UserError(
            f"parameter {strange[0]!r} is outside the model whose roles are known: build the groups by hand"
        )
    width = _stated_width(getattr(base, "config", None))
    if width is not None:
        parameterization.setdefault("width", width)
    moments: dict[str, Any] = {} if optimizer == "sgd" else {"betas": (args.adam_beta1, args.adam_beta2)}
    made = build_optimizer(
        base,
        optimizer,
        lr=args.learning_rate,
        weight_decay=args.weight_decay,
        eps=args.adam_epsilon,
        **moments,
        **parameterization,
    )
    return made, None


def _stated_width(config: Any) -> Width | None:
    """Read the width and its base from the muP fields of a transformers config; None where it has none or they are off."""
    base = getattr(config, "mup_base_width", None)
    if not getattr(config, "mup", False) or base is None:
        return None
    return Width(config.hidden_size, base)
