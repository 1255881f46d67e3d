"""Streams: exact at a token, whatever was read before; prefetching changes nothing."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopscale import UserError
from loopscale.data import Prefetched, load_data
from loopscale.data.split import side_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "rows.jsonl"
    rng = np.random.Generator(np.random.PCG64(0))
    texts = [" ".join(map(str, rng.integers(0, 10**6, rng.integers(1, 40)))) for _ in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path, texts


def expected(texts, count):
    """The training side, joined and repeated."""
    one = b"".join(text.encode() + b"\0" for text in texts if side_of(text, 0.05) == "train")
    return np.frombuffer(one * (count // len(one) + 2), np.uint8)[:count].astype(np.int64)


def test_the_batches_are_the_text_in_order_for_ever(rows):
    path, texts = rows
    data, B, T = load_data(f"stream:{path}"), 3, 50
    tokens = expected(texts, 300 * B * T + 1)
    for step in range(300):  # several times through the source
        inputs, targets = data.batch(step, 0, B, T)
        at = step * B * T
        assert np.array_equal(inputs.ravel(), tokens[at : at + B * T])
        assert np.array_equal(targets.ravel(), tokens[at + 1 : at + B * T + 1])


@given(
    B=st.integers(1, 5), T=st.integers(1, 400), step=st.integers(0, 30), jumps=st.lists(st.integers(0, 40), max_size=4)
)
@settings(deadline=None, max_examples=25)
def test_any_step_is_reached_from_anywhere(rows, B, T, step, jumps):
    path, texts = rows
    data = load_data(f"stream:{path}")
    for other in jumps:
        data.batch(other, 0, B, T)
    at = step * B * T
    assert np.array_equal(data.batch(step, 0, B, T)[0].ravel(), expected(texts, at + B * T)[at:])
    half = slice(0, (B + 1) // 2)
    assert np.array_equal(data.batch(step, 0, B, T, rows=half)[0], data.batch(step, 0, B, T)[0][half])


@given(B=st.integers(1, 5), T=st.integers(1, 400), step=st.integers(1, 30), ahead=st.integers(0, 3))
@settings(deadline=None, max_examples=25)
def test_a_bookmark_is_exact_at_a_token_and_saves_the_tokenizing(rows, B, T, step, ahead):
    path, texts = rows
    first, second = load_data(f"stream:{path}"), load_data(f"stream:{path}")
    for k in range(step + ahead):
        first.batch(k, 0, B, T)
    mark = json.loads(json.dumps(first.bookmark(step, B, T)))
    second.restore(mark)
    asked = []
    encode, words = second.tokenizer.encode, type(second.tokenizer)()
    words.encode = lambda text: asked.append(text) or encode(text)
    second.tokenizer = words
    at = step * B * T
    assert np.array_equal(second.batch(step, 0, B, T)[0].ravel(), expected(texts, at + B * T)[at:])
    assert sum(map(len, asked)) <= B * T + 2 * max(map(len, texts)) + 2


def test_parquet_and_hugging_face_give_the_same_stream(rows, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    path, texts = rows
    folder = tmp_path / "set"
    folder.mkdir()
    parquet.write_table(arrow.table({"text": texts}), folder / "train-00000.parquet", row_group_size=7)
    streams = [load_data(f"stream:{name}") for name in (path, folder, f"hf:{folder}")]
    batches = [[stream.batch(step, 0, 2, 64)[0] for step in (0, 1, 2, 30)] for stream in streams]
    assert all(np.array_equal(a, b) for other in batches[1:] for a, b in zip(batches[0], other, strict=True))


def test_validation_is_held_out_and_always_the_same(rows):
    path, texts = rows
    data = load_data(f"stream:{path}", validation_fraction=0.3)
    first = [batch[0] for batch in data.validation_batches(2, 40, 3)]
    again = [batch[0] for batch in load_data(f"stream:{path}", validation_fraction=0.3).validation_batches(2, 40, 3)]
    assert len(first) == 3 and all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    held = b"".join(text.encode() + b"\0" for text in texts if side_of(text, 0.3) == "validation")
    assert np.concatenate(first).astype(np.uint8).tobytes() == held[:240]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_tokens": 100}, "a stream has no end, data.max_tokens cannot shorten it: leave it out"),
        ({"validation_fraction": 1 - 1e-12}, "stream:rows.jsonl has no training text: give more text"),
    ],
)
def test_what_a_stream_refuses(rows, settings, sentence):
    with pytest.raises(UserError) as caught:
        load_data(f"stream:{rows[0]}", **settings)
    assert str(caught.value) == sentence


def test_a_stream_has_its_own_order(rows):
    with pytest.raises(UserError, match=r"read in its own order: leave data\.order out"):
        load_data(f"stream:{rows[0]}").batch(0, 0, 1, 8, order="epochs")


def test_prefetching_changes_no_item_and_works_ahead():
    made, block = [], threading.Event()

    def make(index):
        made.append(index)
        if index == 9:
            raise UserError("nine")
        if index == 2:
            block.set()
        return index * 10

    ready = Prefetched(make, ahead=2)
    assert ready(0) == 0 and block.wait(5)  # 1 and 2 are made without being asked for
    assert [ready(k) for k in (1, 2, 2, 7, 8)] == [10, 20, 20, 70, 80]
    with pytest.raises(UserError, match="nine"):
        ready(9)
    ready.close()
    assert len(made) == len(set(made))  # the item that was asked for last is kept
