"""Say what every record on disk holds, and read and write it through one door."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
