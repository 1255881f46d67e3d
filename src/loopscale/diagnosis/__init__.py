"""For any nn.Module: watch its visits, and check that it is flat over loops."""

from loopscale.diagnosis.check import ParameterizationCheck, check_parameterization
from loopscale.diagnosis.visits import Reading, Visits, watch

__all__ = ["ParameterizationCheck", "Reading", "Visits", "check_parameterization", "watch"]
