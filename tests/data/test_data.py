"""Laws of the token streams, on real files and real processes."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopscale import UserError
from loopscale.data import TASKS, BPETokenizer, ByteTokenizer, load_data, tokenizer_from_json
from loopscale.data.packing import split_documents
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


def test_validation_windows_do_not_overlap_and_targets_are_all_distinct_places(book):
    data = load_data(book, context=16, validation_fraction=0.3)
    batches = list(data.validation_batches(4, 16, 8))
    rows = [tuple(row) for inputs, _ in batches for row in inputs]
    assert len(rows) == len(set(rows)) == 32
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(batches, data.validation_batches(4, 16, 8), strict=True))
    assert (
        sum(len(inputs) for inputs, _ in data.validation_batches(4, 16, 10**6)) == (data.tokens("validation") - 1) // 16
    )


@given(st.lists(st.text(min_size=1), max_size=30, unique=True), st.floats(0.01, 0.99))
def test_the_split_partitions_the_documents(documents, fraction):
    parts = list(split_documents(documents, fraction))
    if len(documents) == 1:
        assert "".join(text for _, text in parts) == documents[0]
    else:
        assert [text for _, text in parts] == documents


def test_packing_conserves_the_text(book):
    data = load_data(book, context=16)
    assert data.description["tokens"] == {side: data.tokens(side) for side in ("train", "validation")}
    whole = b"".join(bytes(data._sides[side].astype(np.uint8)).rstrip(b"\0") for side in ("train", "validation"))
    assert whole == book.read_bytes()


def test_a_changed_file_is_packed_again_and_a_truncated_cache_is_mended(book, tmp_path):
    cache = tmp_path / "cache"
    first = load_data(book, cache_dir=cache)
    packed = next(cache.rglob("train.bin"))
    size = packed.stat().st_size
    del first
    packed.write_bytes(packed.read_bytes()[:100])
    assert load_data(book, cache_dir=cache).tokens("train") == size // 2
    book.write_text(book.read_text() + "one more line\n" * 100)
    assert load_data(book, cache_dir=cache).tokens("train") > size // 2


def test_two_processes_may_pack_at_once(book, tmp_path):
    code = (
        f"from loopscale.data import load_data; from pathlib import Path\n"
        f"d = load_data({str(book)!r}, tokenizer='bpe', vocab_size=300, cache_dir=Path({str(tmp_path / 'c')!r}))\n"
        "print(d.description['sha256'], d.tokens('train'))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[0] for process in running}
    assert len(said) == 1 and all(process.returncode == 0 for process in running)


def test_folders_and_jsonl_are_read(tmp_path, book):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for n in range(30):
        (folder / "deep" / f"{n}.txt").write_text(f"document {n} " * 40)
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    assert load_data(folder, validation_fraction=0.2).description["documents"] == 30
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": f"row {n} " * 50}) + "\n" for n in range(30)))
    assert load_data(rows, text_field="body", validation_fraction=0.2).description["documents"] == 30


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
        (lambda: load_data(file("short.txt", b"one line\ntwo\n"), context=64), "too few for a context of 64"),
        (lambda: load_data(book, tokenizer="byte"), "unknown tokenizer 'byte': did you mean 'bytes'"),
        (lambda: load_data(book, tokenizer="bpe", vocab_size=20), "at least 257"),
        (lambda: load_data(book, vocab_size=300), "the bytes tokenizer has 256 tokens, not 300"),
        (lambda: load_data("synthetic:cpy"), "unknown synthetic task 'cpy': did you mean 'copy'?"),
        (lambda: load_data(file("bad.jsonl", b'{"text": "a"}\n{oops\n')), "line 2 of"),
        (lambda: load_data(file("field.jsonl", b'{"txt": "a"}\n')), "did you mean 'txt'?"),
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
