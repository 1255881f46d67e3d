"""Which versions of transformers the bridges are tested with, and one sentence for those that are too old."""

from __future__ import annotations

import re
from types import ModuleType

from loopscale.errors import UserError, require

OLDEST = (4, 57)


def transformers() -> ModuleType:
    """Import the library, or raise `UserError` when it is absent or older than 4.57."""
    module = require("transformers", "hf")
    version = str(getattr(module, "__version__", "0"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise UserError(
            f"transformers {version} is too old: loopscale works with 4.57 and newer, pip install -U 'loopscale[hf]'"
        )
    return module
