"""Any model: attach the residual scale to what people already have, and take it off again."""

from loopscale.adapt.attach import attach, attachment, detach
from loopscale.adapt.attachment import Attachment
from loopscale.adapt.conversion import Conversion
from loopscale.adapt.convert import convert, restore
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
