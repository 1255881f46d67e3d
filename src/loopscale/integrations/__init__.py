"""Bridges to what people already use, each imported when first touched. `huggingface` registers the Auto classes."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
