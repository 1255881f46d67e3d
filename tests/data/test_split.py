"""Laws of the split and of the limit: nothing is lost, nothing is on both sides, both sides have text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopscale.data import ByteTokenizer, load_data
from loopscale.data.split import limited, split_documents

DOCUMENTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=30, unique=True)
FRACTION = st.floats(0.01, 0.99)


@given(DOCUMENTS, FRACTION)
def test_the_split_keeps_all_text_in_order(documents, fraction):
    parts = list(split_documents(documents, fraction))
    assert "".join(text for _, text in parts) == "".join(documents)
    assert len(parts) <= len(documents) + 1


@given(DOCUMENTS, FRACTION)
def test_both_sides_have_text_where_there_is_enough(documents, fraction):
    sides = {side for side, _ in split_documents(documents, fraction)}
    if max(map(len, documents), default=0) >= 2:
        assert sides == {"train", "validation"}


def test_short_documents_of_one_length_keep_their_sides_in_any_order():
    first, again = (dict(map(reversed, split_documents(list(order), 0.75))) for order in ("01", "10"))
    assert first == again


@given(DOCUMENTS, FRACTION, st.randoms(use_true_random=False))
def test_a_whole_document_never_changes_sides(documents, fraction, random):
    """Other neighbours, another order: only a document that is cut may differ."""
    shuffled = random.sample(documents, len(documents))
    first = [(text, side) for side, text in split_documents(documents, fraction)]
    again = [(text, side) for side, text in split_documents(shuffled, fraction)]
    if len(first) == len(again) == len(documents):
        assert dict(first) == dict(again)


@pytest.mark.parametrize("text", ["a line\n" * 200, "x" * 1000, "title\n" + "x" * 1000, "x" * 1000 + "\nend\n"])
def test_one_document_is_cut_near_the_fraction(text):
    train, validation = (part for _, part in split_documents([text], 0.1))
    assert train + validation == text
    assert 0.05 * len(text) <= len(validation) <= 0.2 * len(text)
    if text.startswith("a line"):
        assert train.endswith("\n")


def test_few_documents_leave_no_side_empty(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"chapter {number}\n" * 200)
    data = load_data(tmp_path, context=16)
    assert 0.03 < data.tokens("validation") / data.tokens("train") < 0.08


@given(DOCUMENTS, st.integers(2, 60))
@settings(deadline=None)
def test_the_limit_holds_and_nothing_but_the_end_is_left_out(documents, most):
    tokenizer = ByteTokenizer()
    taken = list(limited(documents, tokenizer, most))
    assert sum(len(tokenizer.encode(text)) + 1 for text in taken) <= most - 1
    assert all(text == whole for text, whole in zip(taken[:-1], documents, strict=False))
    assert not taken or documents[len(taken) - 1].startswith(taken[-1])


@pytest.mark.parametrize("tokenizer,vocab_size", [("bytes", None), ("bpe", 300)])
def test_a_limited_data_set_has_both_sides_and_at_most_the_limit(tmp_path, tokenizer, vocab_size):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"line {n} of é text\n" for n in range(2000)))
    data = load_data(book, tokenizer=tokenizer, vocab_size=vocab_size, max_tokens=3000, context=16)
    assert 2900 < data.tokens("train") + data.tokens("validation") <= 3000
    assert data.description["max_tokens"] == 3000 and data.tokens("validation") > 100
