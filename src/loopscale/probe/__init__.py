"""Run any module as its user would and see what happens in it: one forward pass noted as a tape, read by visit."""

from loopscale.probe.batch import call_model, first_float, prepare
from loopscale.probe.noting import noting
from loopscale.probe.passes import record
from loopscale.probe.tape import Node, Site, Tape, TooLong, tensors_in
from loopscale.probe.untouched import untouched, unwrap
from loopscale.probe.watch import Reading, Watch, watch

__all__ = [
    "Node",
    "Reading",
    "Site",
    "Tape",
    "TooLong",
    "Watch",
    "call_model",
    "first_float",
    "noting",
    "prepare",
    "record",
    "tensors_in",
    "untouched",
    "unwrap",
    "watch",
]
