"""For any module: find the loop, watch its visits, measure growth, alignment and the loop map, and name what is wrong."""

from loopscale.diagnosis.arnoldi import Spectrum, leading_eigenvalues
from loopscale.diagnosis.callback import trainer_callback
from loopscale.diagnosis.check import check_parameterization
from loopscale.diagnosis.diagnosis import SEVERITIES, Diagnosis, Finding
from loopscale.diagnosis.monitor import Monitor, Sample
from loopscale.diagnosis.run import diagnose
from loopscale.diagnosis.schema import diagnosis_schema
from loopscale.parameterization import CheckRow, ParameterizationCheck

__all__ = [
    "SEVERITIES",
    "CheckRow",
    "Diagnosis",
    "Finding",
    "Monitor",
    "ParameterizationCheck",
    "Sample",
    "Spectrum",
    "check_parameterization",
    "diagnose",
    "diagnosis_schema",
    "leading_eigenvalues",
    "trainer_callback",
]
