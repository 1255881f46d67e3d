"""Claim: `data prepare --tokenizer bpe` in batches on all cores against a document at a time; memory is flat over size.

python benchmarks/prepare.py [--out records/prepare.json] [--megabytes 100] [--rounds 2] [--large 1000]

The text is the sources of the standard library and the installed packages, one document per file. Old (until version 0.3:
each document by itself) and new way alternate in processes of their own; CPU seconds are given beside wall seconds, for a
machine that does other work too: wall seconds mean something on an idle one alone. Both write the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from loopscale.data import Preparation, prepare_data
from loopscale.data.tokenizer import BPETokenizer
from loopscale.files import write_json
from loopscale.train import provenance

VOCAB = 8192


def sources(count: int) -> Iterator[str]:
    """Give Python files, again from the first where they are too few, until they make `count` bytes."""
    for file in cycle(sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))):
        if count <= 0:
            return
        text = file.read_text(encoding="utf-8", errors="ignore").replace("\0", "")
        if text.strip():
            count -= len(text.encode())
            yield text


def one_by_one(model: BPETokenizer, text: str) -> Any:
    """Encode as version 0.3 did."""
    import numpy as np

    return np.array(model._model.encode(text, add_special_tokens=False).ids, dtype=np.int64)


def prepared(corpus: Path, out: Path, words: Path, old: bool) -> dict[str, Any]:
    """Prepare once, in this process; `words` is the tokenizer, trained before."""
    if old:
        BPETokenizer.encode_batch = lambda self, texts, kind: [one_by_one(self, text).astype(kind) for text in texts]  # type: ignore[method-assign]
    began, cpu = time.perf_counter(), time.process_time()
    manifest = prepare_data(str(corpus), out, Preparation(tokenizer_from=str(words)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    digest = hashlib.sha256("".join(row.sha256 for row in manifest.shards.train).encode()).hexdigest()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = sum(row.tokens for row in manifest.shards.train)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, "tokens": tokens, "sha256": digest}


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def write_corpus(path: Path, megabytes: float) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in sources(int(megabytes * 1e6)):
            file.write(json.dumps({"text": text}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--large", type=float, default=0, help="megabytes of a text prepared once, for its memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = folder / "words.json"
        words.write_text(BPETokenizer.train(islice(sources(2**30), 300), VOCAB).to_json())
        write_corpus(folder / "text.jsonl", options.megabytes)
        write_corpus(folder / "quarter.jsonl", options.megabytes / 4)
        rows: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
        for number in range(options.rounds):
            for way, found in rows.items():
                out = folder / f"{way}-{number}"
                found.append(apart(prepared, folder / "text.jsonl", out, words, way == "old"))
                print(way, found[-1], flush=True)
        quarter = apart(prepared, folder / "quarter.jsonl", folder / "quarter", words, False)
        large = None
        if options.large:
            write_corpus(folder / "large.jsonl", options.large)
            large = {"megabytes": options.large, **apart(prepared, folder / "large.jsonl", folder / "l", words, False)}
            print("large", large, flush=True)
    assert len({row["sha256"] for found in rows.values() for row in found}) == 1, "the tokens differ"

    def ratio(key: str) -> float:
        return statistics.median(new[key] / old[key] for old, new in zip(*rows.values(), strict=True))

    record = {
        "megabytes": options.megabytes,
        "vocab_size": VOCAB,
        "ratio_seconds": ratio("seconds"),
        "ratio_cpu_seconds": ratio("cpu_seconds"),
        "peak_over_a_quarter_of_the_text": rows["new"][0]["peak_bytes"] / quarter["peak_bytes"],
        "large": large,
        "runs": rows,
        "provenance": provenance(),
    }
    print({key: value for key, value in record.items() if key != "runs"})
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
