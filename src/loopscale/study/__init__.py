"""Run the trials of a study: one driver per folder, workers on this machine's cores and GPUs, on Ray or on SLURM."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
