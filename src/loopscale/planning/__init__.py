"""What a training will need, by arithmetic alone: parameters, FLOPs, memory, hours, dollars. Imports no torch."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
