"""What every life imports sooner or later, imported once by the server that they are forked from."""

from contextlib import suppress
from importlib import import_module

from loopscale import cli

import_module("life")
for place in cli.COMMANDS.values():
    import_module(place.partition(":")[0])
for name in (
    *(
        "torch.distributed.fsdp",
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "scipy.optimize",
        "altair",
        "tokenizers",
    ),
    *("loopscale.data", "loopscale.exponent", "loopscale.report", "loopscale.study", "loopscale.train"),
    *("loopscale.transfer", "loopscale.tune", "loopscale.integrations.export", "loopscale.diagnosis"),
):
    import_module(name)
with suppress(ImportError):
    import_module("loopscale.integrations.huggingface")
    import_module("transformers.models.llama.modeling_llama")
