"""Learning-rate transfer over loops: the study, the fitted optimum, the verdict.

Public names load on first use, so that whoever reads a study's numbers needs no torch.
"""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
