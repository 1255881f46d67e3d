"""Any model: attach the residual scale to what people already have, and take it off again."""

from loopscale.adapt.attach import attach, attachment, detach
from loopscale.adapt.handle import Attachment

__all__ = ["Attachment", "attach", "attachment", "detach"]
