"""Token streams: embedded text, synthetic tasks, a user's own data; batch = f(seed, step)."""

from loopscale.data.dataset import Dataset
from loopscale.data.load import cache_folder, load_data
from loopscale.data.synthetic import TASKS
from loopscale.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, tokenizer_from_json

__all__ = [
    "TASKS",
    "BPETokenizer",
    "ByteTokenizer",
    "Dataset",
    "Tokenizer",
    "cache_folder",
    "load_data",
    "tokenizer_from_json",
]
