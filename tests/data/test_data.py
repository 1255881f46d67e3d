"""Laws of the token streams, on real files and real processes."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopscale import UserError
from loopscale.data import TASKS, BPETokenizer, ByteTokenizer, load_data, tokenizer_from_json
from loopscale.data.synthetic import synthetic_documents

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
WORDS = "the quick brown fox jumps over the lazy dog\n" * 50


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {n}: {hashlib.sha256(str(n).encode()).hexdigest()}\n" for n in range(400)))
    return path


@given(TEXT)
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([WORDS], 300)


@given(TEXT)
@settings(deadline=None)
def test_bpe_round_trip_also_through_json(bpe, text):
    again = tokenizer_from_json(bpe.to_json())
    assert again.decode(bpe.encode(text)) == text
    assert np.array_equal(again.encode(text), bpe.encode(text))


@pytest.mark.parametrize("text", ["<|separator|>", "a<|separator|>b"])
def test_no_text_makes_a_separator(bpe, text):
    for tokenizer in (bpe, tokenizer_from_json(bpe.to_json())):
        assert 0 not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text


def test_a_lone_surrogate_becomes_a_question_mark(bpe):
    assert [t.decode(t.encode("a\ud800b")) for t in (bpe, ByteTokenizer())] == ["a?b"] * 2
    assert BPETokenizer.train(["\ud800 a"], 257).vocab_size == 257


def test_bpe_shortens_what_it_was_trained_on(bpe):
    assert len(bpe.encode(WORDS)) < 0.5 * len(WORDS) and bpe.vocab_size <= 300


@pytest.mark.parametrize(
    "task,golden",
    [
        ("copy", "7b67682d0f21c63d"),
        ("addition", "56867e0c19d2ea11"),
        ("permutation", "df53bab3d5bc4e74"),
    ],
)
def test_synthetic_text_is_the_same_everywhere(task, golden):
    assert hashlib.sha256("".join(synthetic_documents(task)).encode()).hexdigest()[:16] == golden


def test_synthetic_lines_are_true():
    lines = {task: next(synthetic_documents(task)).splitlines() for task in TASKS}
    for line in lines["addition"]:
        question, answer = line.split("=")
        assert sum(map(int, question.split("+"))) == int(answer)
    for line in lines["copy"]:
        assert len(set(line.split(">"))) == 1
    for line in lines["permutation"]:
        table, walk = line.split(" ")
        at, steps, answer = map(int, walk.replace("=", "^").split("^"))
        for _ in range(steps):
            at = int(table[at])
        assert at == answer


@given(st.integers(0, 10_000), st.integers(0, 1000), st.integers(1, 5), st.integers(2, 40))
@settings(deadline=None, max_examples=30)
def test_a_batch_is_a_pure_function_and_targets_are_inputs_one_later(step, seed, batch_size, context):
    data = load_data("synthetic:copy", context=40)
    inputs, targets = data.batch(step, seed, batch_size, context)
    again = load_data("synthetic:copy", context=40).batch(step, seed, batch_size, context)
    assert np.array_equal(inputs, again[0]) and np.array_equal(targets, again[1])
    assert inputs.shape == targets.shape == (batch_size, context) and inputs.dtype == np.int64
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])


def test_steps_and_seeds_give_other_batches():
    data = load_data("synthetic:copy")
    first = data.batch(0, 0, 4, 32)[0]
    assert not np.array_equal(first, data.batch(1, 0, 4, 32)[0])
    assert not np.array_equal(first, data.batch(0, 1, 4, 32)[0])


def test_batches_are_the_same_everywhere():
    """Recorded results rest on this; a change of numpy's stream, the split or the packing shows here."""
    data = load_data("synthetic:copy")
    taken = b"".join(side.tobytes() for step in range(3) for side in data.batch(step, 7, 4, 32))
    assert hashlib.sha256(taken).hexdigest()[:16] == "0087a046bb4d0185"


def test_importing_the_layer_brings_no_torch():
    code = "import sys, loopscale.data; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_validation_windows_do_not_overlap_and_targets_are_all_distinct_places(book):
    data = load_data(book, context=16, validation_fraction=0.3)
    batches = list(data.validation_batches(4, 16, 8))
    rows = [tuple(row) for inputs, _ in batches for row in inputs]
    assert len(rows) == len(set(rows)) == 32
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(batches, data.validation_batches(4, 16, 8), strict=True))
    assert (
        sum(len(inputs) for inputs, _ in data.validation_batches(4, 16, 10**6)) == (data.tokens("validation") - 1) // 16
    )


def test_packing_conserves_the_text(book):
    data = load_data(book, context=16)
    assert data.description["tokens"] == {side: data.tokens(side) for side in ("train", "validation")}
    sides = [data._sides[side][np.arange(data.tokens(side))] for side in ("train", "validation")]
    whole = b"".join(bytes(side.astype(np.uint8)).rstrip(b"\0") for side in sides)
    assert whole == book.read_bytes()


def test_a_changed_file_is_packed_again_and_a_truncated_cache_is_mended(book, tmp_path):
    cache = tmp_path / "cache"
    first = load_data(book, cache_dir=cache)
    packed = next(cache.rglob("train-00000.safetensors"))
    size = first.tokens("train")
    del first
    packed.write_bytes(packed.read_bytes()[:100])
    assert load_data(book, cache_dir=cache).tokens("train") == size
    book.write_text(book.read_text() + "one more line\n" * 100)
    assert load_data(book, cache_dir=cache).tokens("train") > size


@pytest.mark.parametrize("damaged", ["tokenizer.json", "manifest.json", "validation-00000.safetensors"])
def test_any_damaged_file_of_the_cache_is_made_again(book, tmp_path, damaged):
    keywords = {"cache_dir": tmp_path / "cache", "tokenizer": "bpe", "vocab_size": 300, "context": 16}
    before = load_data(book, **keywords).batch(0, 0, 4, 16)[0]
    next((tmp_path / "cache").rglob(damaged)).write_text("{")
    assert np.array_equal(before, load_data(book, **keywords).batch(0, 0, 4, 16)[0])


def test_a_cache_is_found_by_content(book, tmp_path):
    """Times do not count: a touched file is the same text; a change that keeps size and times is another."""
    cache = tmp_path / "cache"
    first = load_data(book, cache_dir=cache).description["sha256"]
    os.utime(book, ns=(1, 1))
    load_data(book, cache_dir=cache)
    assert len(list(cache.rglob("manifest.json"))) == 1
    book.write_text(book.read_text().replace("line 7:", "LINE 7:"))
    os.utime(book, ns=(1, 1))
    assert load_data(book, cache_dir=cache).description["sha256"] != first


def test_a_cache_that_cannot_be_written_names_the_variable(book, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(UserError, match="set LOOPSCALE_CACHE to a folder you can write"):
        load_data(book, cache_dir=tmp_path / "cache")


def test_two_processes_may_pack_at_once(book, tmp_path):
    code = (
        f"from loopscale.data import load_data; from pathlib import Path\n"
        f"d = load_data({str(book)!r}, tokenizer='bpe', vocab_size=300, cache_dir=Path({str(tmp_path / 'c')!r}))\n"
        "print(d.description['sha256'], d.tokens('train'))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[0] for process in running}
    assert len(said) == 1 and all(process.returncode == 0 for process in running)


def test_the_embedded_text_is_real_and_recorded():
    description = load_data().description
    assert sum(description["tokens"].values()) > 5_000_000 and len(description["sha256"]) == 64
    assert description["python"] == sys.version.split()[0]


def test_mistakes_get_a_sentence(tmp_path, book):
    def file(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    cases = [
        (lambda: load_data(tmp_path / "bok.txt"), "did you mean 'book.txt'?"),
        (lambda: load_data(file("empty.txt", b"")), "is empty"),
        (lambda: load_data(file("blank.txt", b" \n\n")), "is empty"),
        (lambda: load_data(file("zero.txt", b"ab\0cd")), "is binary (a zero byte at offset 2)"),
        (lambda: load_data(file("latin.txt", b"caf\xe9 au lait")), "is not UTF-8 text (byte 3)"),
        (lambda: load_data(file("short.txt", b"one line\ntwo\n"), context=64), "a context of 64: give more text"),
        (lambda: load_data(book, tokenizer="byte"), "unknown tokenizer 'byte': did you mean 'bytes'"),
        (lambda: load_data(book, tokenizer="bpe", vocab_size=20), "at least 257"),
        (lambda: load_data(book, tokenizer="bpe", vocab_size="5"), "got '5'"),
        (lambda: load_data(book, vocab_size=300), "the bytes tokenizer has 256 tokens, not 300"),
        (lambda: load_data("synthetic:cpy"), "unknown synthetic task 'cpy': did you mean 'copy'?"),
        (lambda: load_data(file("bad.jsonl", b'{"text": "a"}\n{oops\n')), "line 2 of"),
        (lambda: load_data(file("field.jsonl", b'{"txt": "a"}\n')), "did you mean 'txt'?"),
        (lambda: load_data(file("tiny.txt", b"thirty bytes of text, no more.")), "context of 64: give more text"),
        (lambda: load_data("/dev/zero"), "'/dev/zero' is a device or a pipe, which may have no end"),
        (lambda: load_data(" "), "the data source is an empty name: set data.path"),
        (lambda: load_data("stdlb"), "did you mean 'stdlib'?"),
        (lambda: load_data("hf:"), "write hf:NAME or hf:NAME:SPLIT"),
        (lambda: load_data(book, context=0), "the context must be at least 1 token, got 0"),
        (lambda: load_data(book, max_tokens=1), "max_tokens must be at least 2, got 1"),
        (lambda: load_data(book, max_tokens=4), "raise data.max_tokens"),
        (
            lambda: load_data(book).batch(0, 0, 1, 10**6),
            "too few for a context of 1000000: set data.context to at most",
        ),
        (
            lambda: load_data(book).batch(0, 0, 1, 8, order="sorted"),
            "unknown order 'sorted' of the data: known: epochs, random",
        ),
        (lambda: load_data(book, validation=0.1), "no keyword 'validation': did you mean 'validation_fraction'?"),
        (lambda: load_data(book, validation_fraction=0.0), "must lie between 0 and 1"),
        (lambda: tokenizer_from_json("{"), "the stored tokenizer is damaged"),
    ]
    for call, words in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'loopscale\[datasets\]'"):
        load_data("hf:some/name")
