"""Any model: attach the residual scale to what people already have, and take it off again."""

from loopscale.adapt.attach import Attachment, attach, attachment, detach
from loopscale.adapt.convert import Conversion, convert, restore
from loopscale.adapt.fold import Folded, fold, unfold
from loopscale.adapt.handle import Handle

__all__ = [
    "Attachment",
    "Conversion",
    "Folded",
    "Handle",
    "attach",
    "attachment",
    "convert",
    "detach",
    "fold",
    "restore",
    "unfold",
]
