"""Token streams: embedded text, synthetic tasks, a user's own data; batch = f(seed, step)."""

from loopscale.data.dataset import Dataset, Prefetched
from loopscale.data.load import cache_folder, load_data
from loopscale.data.prepare import Preparation, prepare_data
from loopscale.data.prepared import verify
from loopscale.data.stream import Stream
from loopscale.data.synthetic import TASKS
from loopscale.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, tokenizer_from_json

__all__ = [
    "TASKS",
    "BPETokenizer",
    "ByteTokenizer",
    "Dataset",
    "Prefetched",
    "Preparation",
    "Stream",
    "Tokenizer",
    "cache_folder",
    "load_data",
    "prepare_data",
    "tokenizer_from_json",
    "verify",
]
