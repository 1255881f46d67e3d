"""loopscale: tune a looped Transformer once, at few loops, and train it at any number of loops.

Everything is imported when it is first touched; the maths needs no torch.
"""

from loopscale.lazy import on_first_use

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
