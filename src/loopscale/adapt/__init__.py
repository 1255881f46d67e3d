"""Any model: attach the residual scale to what people already have, and take it off again."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
