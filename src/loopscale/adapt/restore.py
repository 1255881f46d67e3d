"""restore: put back what a checkpoint says was attached or converted, from its config."""

from __future__ import annotations

from typing import Any

from torch import nn

from loopscale.adapt.attach import attach
from loopscale.adapt.attachment import Attachment
from loopscale.adapt.conversion import Conversion
from loopscale.adapt.convert import convert
from loopscale.errors import UserError


def restore(model: nn.Module, **given: Any) -> Attachment | Conversion:
    """Attach or convert as `model.config.loopscale` says, which `save_pretrained` stored and `from_pretrained` read.

    Keywords go to `attach` or `convert` (`loops=` may differ from the stored; another rule is an error).

    Raises `UserError` when the config holds nothing of the kind.
    """
    stored = getattr(getattr(model, "config", None), "loopscale", None)
    if not isinstance(stored, dict) or "rule" not in stored:
        raise UserError(f"the config of this {type(model).__name__} names no rule: call attach or convert with one")
    shared = {name: stored[name] for name in ("rule", "loops", "layers", "strength", "base_layers")}
    if "convert" not in stored:
        return attach(model, **{"branches": stored.get("branches"), "once": stored.get("once"), **shared, **given})
    span = {name: stored[name] for name in ("start", "stop", "steps")}
    return convert(model, **{**shared, **span, "stack": stored["convert"], **given})
