"""LoopedConfig: every field of ModelConfig as a transformers config, and the rule that the weights were trained under."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, ClassVar

from loopscale.errors import UserError, transformers
from loopscale.nn import ModelConfig
from loopscale.parameterization import get_rule

FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))


class LoopedConfig(transformers().PretrainedConfig):  # type: ignore[misc, name-defined, unused-ignore]
    """The fields of `ModelConfig`, by the same names and defaults; options with values of their own are JSON tables.

    `loops` may be changed at any time (`model.config.loops = 8`; better: per call). `parameterization` states rule,
    exponents and strength; it is written when saved and compared when loaded.

    Raises `UserError` for values that make no network, and for a keyword that looks like a misspelt field.

    >>> LoopedConfig(width=64, layers=2, loops=4).network().mlp_width
    176
    """

    model_type = "loopscale"
    has_no_defaults_at_init = False
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {"hidden_size": "width", "tie_word_embeddings": "tied_readout"}

    def __init__(self, **values: Any) -> None:
        for general, ours in self.attribute_map.items():
            if general in values:
                values.setdefault(ours, values.pop(general))
        fields = {name: values.pop(name) for name in FIELDS if name in values}
        _check_words(values)
        network = ModelConfig(**fields)
        super().__init__(**values)
        for name in FIELDS:
            setattr(self, name, plain(getattr(network, name)))

    def network(self) -> ModelConfig:
        """Give the house model's config, with the values of now."""
        return ModelConfig(**{name: getattr(self, name) for name in FIELDS})

    @classmethod
    def of(cls, network: ModelConfig, **values: Any) -> LoopedConfig:
        """Convert the house model's config."""
        return cls(**{name: plain(getattr(network, name)) for name in FIELDS}, **values)

    def to_dict(self) -> dict[str, Any]:
        """Give what config.json holds."""
        values: dict[str, Any] = super().to_dict()
        return {**values, "parameterization": parameterization(self)}

    @property
    def num_hidden_layers(self) -> int:
        """Executed layers, each with its slot in a cache: prelude + loops * layers + coda."""
        return int(self.prelude + self.loops * self.layers + self.coda)

    @property
    def num_attention_heads(self) -> int:
        """Query heads."""
        return self.network().heads

    @property
    def num_key_value_heads(self) -> int:
        """Key-value heads."""
        return self.network().kv_heads or self.network().heads

    @property
    def intermediate_size(self) -> int:
        """Hidden width of the SwiGLU."""
        return self.network().mlp_width


def plain(value: Any) -> Any:
    """Turn a value into what JSON holds: dataclasses become tables."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: plain(inner) for key, inner in dataclasses.asdict(value).items()}
    if isinstance(value, (tuple, list)):
        return [plain(inner) for inner in value]
    return value


def parameterization(config: Any) -> dict[str, Any]:
    """Give what must be equal for weights to mean the same: the rule with its numbers, strength and base layers."""
    rule = get_rule(config.rule)
    return {
        "rule": rule.name,
        "norm": rule.norm,
        "loops_exponent": rule.loops_exponent,
        "layers_exponent": rule.layers_exponent,
        "strength": config.strength,
        "base_layers": config.base_layers,
        "base_width": config.base_width,
        "frozen_loops": config.loops if config.scale == "freeze" else None,
    }


def check_same_rule(stored: dict[str, Any], config: Any, place: object) -> None:
    """Raise `UserError` when weights are loaded under a different parameterization than they were stored with."""
    then, now = stored.get("parameterization") or {}, parameterization(config)
    for key, value in now.items():
        if key in then and then[key] != value:
            raise UserError(
                f"{place} was trained with {key} = {then[key]!r} (rule {then.get('rule')!r}) and is to be loaded with "
                f"{key} = {value!r}: leave {key} out to load it as it was trained"
            )


# What other configs call our fields; an attribute of such a name would do nothing.
_FOREIGN = {
    **dict.fromkeys(("num_layers", "n_layer", "n_layers"), "layers"),
    **dict.fromkeys(("num_loops", "n_loops", "num_recur"), "loops"),
    **dict.fromkeys(("d_model", "n_embd", "dim"), "width"),
}
_FOLLOW = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def _check_words(values: dict[str, Any]) -> None:
    for word in values:
        if word in _FOLLOW:
            raise UserError(f"{word} follows from other fields: set layers, loops, head_dim, kv_heads or mlp_ratio")
        close = difflib.get_close_matches(word, FIELDS, n=1, cutoff=0.8)
        meant = _FOREIGN.get(word, close[0] if close else None)
        if meant and not hasattr(transformers().PretrainedConfig, word):
            raise UserError(f"LoopedConfig has no {word!r}: did you mean {meant!r}?")
