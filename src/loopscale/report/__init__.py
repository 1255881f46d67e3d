"""Numbers of a study or a run -> figures and one self-contained interactive page.

Public names load on first use, so that `import loopscale.report` needs neither Altair nor torch.
"""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
