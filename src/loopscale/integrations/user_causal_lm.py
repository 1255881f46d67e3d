"""A user model behind the interface of transformers, as far as the evaluation harness needs it: logits, no cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from loopscale.errors import transformers
from loopscale.train.user import logits_of

_hf = transformers()


class UserCausalLM(_hf.PreTrainedModel, _hf.GenerationMixin):  # type: ignore[misc, name-defined, unused-ignore]
    """Wrap a model that gives logits [B, T, V] for tokens [B, T]. Padding is on the right, where a causal model is blind.

    >>> UserCausalLM(nn.Embedding(7, 7), 7, 16)(input_ids=__import__("torch").zeros(1, 5).long()).logits.shape
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
