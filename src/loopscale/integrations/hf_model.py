"""LoopedForCausalLM: the house model behind the interface of transformers.

Shapes: B batch, T positions of this call, S positions with the cached ones, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loopscale.errors import UserError, transformers
from loopscale.integrations.hf_cache import LoopedCache, slots_of
from loopscale.integrations.hf_config import LoopedConfig, check_same_rule
from loopscale.nn import LoopedTransformer, Past, Recompute
from loopscale.optim import watch_groups
from loopscale.parameterization import Depth, Role, Rule, Width
from loopscale.train.user import logits_of

_hf = transformers()
_Output = transformers().modeling_outputs.CausalLMOutputWithPast
# Newer versions of transformers call past_key_values the cache.
CACHE = "cache" if "cache" in _Output.__dataclass_fields__ else "past_key_values"


class LoopedForCausalLM(_hf.PreTrainedModel, _hf.GenerationMixin):  # type: ignore[misc, name-defined, unused-ignore]
    """A looped causal language model; `loops` is an argument of forward and of generate.

    Raises `UserError` for a config that makes no network.

    >>> model = LoopedForCausalLM(LoopedConfig(width=32, layers=2, loops=2))
    >>> model(torch.zeros(1, 5, dtype=torch.long), loops=8).logits.shape
    torch.Size([1, 5, 256])
    """

    config_class = LoopedConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["LoopedCore"]

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__(config)
        # As with every model of transformers, the global generator decides the weights.
        seed = int(torch.randint(2**31, (), device="cpu"))
        self.model = LoopedTransformer(config.network(), seed=seed)
        self.drawn_loops: int | None = None  # of a training step, by `LoopSampler`
        self.post_init()
        watch_groups(self)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the house model has initialised itself, and a checkpoint with a hole is refused."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        loops: int | None = None,
        scale: str | None = None,
        exit_below: float | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Give the logits [B, T, V], the loss of `labels` [B, T] (-100: no target), and the cache.

        attention_mask: [B, S], 1 at tokens. loops: by default `config.loops`; `scale` and `exit_below` as in
        `LoopedTransformer.forward`. hidden_states, when asked for: the stream at entry to the core, after each visit, and
        at the end. `past_key_values` and `cache` are one thing by two names.

        Raises `UserError` for loops below 1 or changed while the cache holds tokens, and for masks of another shape.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds, and one of them")
        x_BTD = self.model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        held = self._held(past_key_values if cache is None else cache, use_cache, labels)
        keep = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        past = _past(held, attention_mask, position_ids)
        visits = next(n for n in (loops, self.drawn_loops, self.config.loops) if n is not None)
        streams = self.model.flow(x_BTD, visits, keep, past=past, scale=scale, exit_below=exit_below)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.model.read(streams[-1][:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = _Output(loss=loss, logits=logits_BTV, hidden_states=tuple(streams) if keep else None, **{CACHE: held})
        as_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _held(self, given: Any, use_cache: bool | None, labels: Tensor | None) -> Any:
        """Give the cache given, or a new one where one is asked for, or will be: without gradients and labels."""
        if given is not None:
            return None if use_cache is False else given
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", True) and not torch.is_grad_enabled() and labels is None
        return LoopedCache() if use_cache else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Do as in transformers.

        Raise `UserError` for a rule that differs from the stored one, or when weights are missing.
        """
        place = pretrained_model_name_or_path
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(place, *args, output_loading_info=True, **kwargs)
        stored = _stored_config(place, kwargs)
        check_same_rule(stored, model.config, place)
        for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape of")):
            if info.get(key):
                first = sorted(map(str, info[key]))[0]
                raise UserError(
                    f"the checkpoint {place} {what} {first}: export it again, or load the config it was saved with"
                )
        return (model, info) if wants_info else model

    # Gradient checkpointing is the core's own recomputation of visits.

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether visits are recomputed in the backward pass; set by `gradient_checkpointing_enable`."""
        return bool(self.model.core.recompute.every) if "model" in self._modules else False

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.model.core.recompute = Recompute(every=int(enable))

    # What loopscale asks of a model: parameter groups follow from these.

    def roles(self) -> dict[str, Role]:
        """Give the role of every parameter, by name."""
        return {f"model.{name}": role for name, role in self.model.roles().items()}

    @property
    def depth(self) -> Depth:
        """Loops and layers."""
        return Depth(self.config.loops, self.config.layers)

    @property
    def rule(self) -> Rule:
        """The rule of the residual scale."""
        return self.model.rule

    @property
    def width_ratio(self) -> Width:
        """Width against the base width."""
        return self.model.width_ratio

    def get_input_embeddings(self) -> nn.Module:
        """Give the embedding."""
        return self.model.embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the embedding."""
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """Give the readout; None when the embedding serves as it."""
        return self.model.readout

    def set_output_embeddings(self, value: Any) -> None:
        """Replace the readout."""
        self.model.readout = value


def _past(held: Any, attention_mask: Tensor | None, position_ids: Tensor | None) -> Past | None:
    slots = None if held is None else slots_of(held)
    if attention_mask is not None and attention_mask.ndim != 2:
        raise UserError(
            f"attention_mask has {attention_mask.ndim} dimensions: a looped model takes [batch, positions], 1 at tokens"
        )
    if slots is None and attention_mask is None and position_ids is None:
        return None
    return Past(slots, attention_mask, position_ids)


def _stored_config(place: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
    stored: dict[str, Any] = LoopedConfig.get_config_dict(place, **{n: kwargs[n] for n in names if n in kwargs})[0]
    return stored


class UserCausalLM(_hf.PreTrainedModel, _hf.GenerationMixin):  # type: ignore[misc, name-defined, unused-ignore]
    """Wrap a model that gives logits [B, T, V] for tokens [B, T]. Padding is on the right, where a causal model is blind.

    >>> UserCausalLM(nn.Embedding(7, 7), 7, 16)(input_ids=torch.zeros(1, 5).long()).logits.shape
    torch.Size([1, 5, 7])
    """

    config_class = _hf.PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, model: nn.Module, vocab_size: int, context: int) -> None:
        super().__init__(_hf.PretrainedConfig(vocab_size=vocab_size, max_position_embeddings=context, use_cache=False))
        self.model = model

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        """Give the logits; masks and caches are not passed on."""
        return _hf.modeling_outputs.CausalLMOutput(logits=logits_of(self.model, input_ids))

    def prepare_inputs_for_generation(self, input_ids: Tensor, **options: Any) -> dict[str, Any]:
        """Give all tokens again at each step: there is no cache."""
        return {"input_ids": input_ids}
