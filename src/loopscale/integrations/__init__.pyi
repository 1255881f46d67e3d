from loopscale.integrations.huggingface import LoopedCache as LoopedCache
from loopscale.integrations.huggingface import LoopedConfig as LoopedConfig
from loopscale.integrations.huggingface import LoopedForCausalLM as LoopedForCausalLM
from loopscale.integrations.trainer import LoopSampler as LoopSampler
from loopscale.integrations.trainer import trainer_optimizers as trainer_optimizers
