"""Folders, JSONL and parquet as users have them: with pictures, empty files and odd characters."""

import json
import re

import numpy as np
import pytest

from loopscale import UserError
from loopscale.data import load_data
from loopscale.data.documents import content_hash, local_documents


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "folder"
    (root / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    for n in range(30):
        (root / "deep" / f"{n}.txt").write_text(f"document {n} " * 40)
    (root / "picture.png").write_bytes(b"\x89PNG\0\0")
    (root / "late.bin").write_bytes(b"a" * 10_000 + b"\0")
    (root / "latin.txt").write_bytes(b"caf\xe9")
    (root / "__init__.py").write_bytes(b"")
    (root / ".git" / "config").write_text("secret")
    return root


def test_a_folder_passes_over_what_is_no_text_and_what_is_hidden(folder):
    documents = list(local_documents(folder, "text"))
    assert len(documents) == 30 and all(text.startswith("document") for text in documents)
    assert load_data(folder, validation_fraction=0.2).description["documents"] == 30


def test_the_hash_of_a_folder_sees_names_and_contents(folder):
    first = content_hash(folder)
    (folder / ".git" / "config").write_text("other")
    assert content_hash(folder) == first
    (folder / "deep" / "0.txt").rename(folder / "deep" / "00.txt")
    renamed = content_hash(folder)
    (folder / "deep" / "1.txt").write_text("other")
    assert len({first, renamed, content_hash(folder)}) == 3


def test_jsonl_keeps_every_character_of_a_row(tmp_path):
    rows = tmp_path / "rows.jsonl"
    texts = ["a\u2028b\u0085c\x0bd", "plain", "é漢😀", ""]
    rows.write_text("".join(json.dumps({"body": text}, ensure_ascii=False) + "\r\n\n" for text in texts))
    assert list(local_documents(rows, "body")) == texts


def test_a_zero_in_a_row_does_not_end_the_document(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n}\0 " * 50}) + "\n" for n in range(30)))
    data = load_data(rows, validation_fraction=0.2)
    zeros = sum(int(np.count_nonzero(np.asarray(side) == 0)) for side in data._sides.values())
    assert zeros == data.description["documents"] == 30


def test_a_lone_surrogate_in_a_row_is_packed_with_either_tokenizer(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n} \ud800 " * 50}) + "\n" for n in range(30)))
    for tokenizer, size in (("bytes", None), ("bpe", 300)):
        data = load_data(rows, tokenizer=tokenizer, vocab_size=size, validation_fraction=0.2)
        assert "row" in data.tokenizer.decode(data.batch(0, 0, 1, 64)[0][0])


@pytest.mark.parametrize(
    "content,words",
    [
        (b'{"text": "a"}\n{oops\n', "line 2 of .* is not JSON .*: mend or remove it"),
        (b'{"text": "a"}\n{"text": "caf\xe9"}\n', "line 2 of .* is not UTF-8 text: convert it"),
        (b'{"txt": "a", "id": 1}\n', "has no text in field 'text': set data.text_field .*did you mean 'txt'.*id, txt"),
        (b'{"text": 3}\n', "line 1 of .* has no text in field 'text'"),
        (b"[1]\n", "line 1 of .* is not an object with fields"),
        (b"[" * 200_000 + b"\n", "line 1 of .* (nested too deeply|is not JSON)"),
        (b"\n \n", "is empty: give a file with text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, content, words):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_data(rows)
    assert re.search(words, str(caught.value)) and "\n" not in str(caught.value)


def test_a_folder_without_text_and_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no text file"):
        load_data(tmp_path / "none")
    (tmp_path / "locked.txt").write_text("text\n" * 99)

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hashlib.file_digest", refused)
    with pytest.raises(UserError, match=r"cannot read .*locked.txt \(Permission denied\): check its permissions"):
        load_data(tmp_path / "locked.txt")


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    good, numbers, broken = (tmp_path / f"{name}.parquet" for name in ("good", "numbers", "broken"))
    parquet.write_table(pa.table({"text": [f"row {n}\n" * 30 for n in range(50)]}), good)
    parquet.write_table(pa.table({"text": list(range(50))}), numbers)
    broken.write_bytes(good.read_bytes()[:-20])
    assert load_data(good, validation_fraction=0.2).description["documents"] == 50
    for file, field, words in [
        (good, "txt", "has no column 'txt': .*did you mean 'text'"),
        (numbers, "text", "holds int64, not text"),
        (broken, "text", "is not a whole parquet file"),
    ]:
        with pytest.raises(UserError, match=words):
            load_data(file, text_field=field)


def test_parquet_without_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install 'loopscale\[datasets\]'"):
        load_data(tmp_path / "rows.parquet")
