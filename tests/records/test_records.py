"""Every record goes through one door: a damaged one is one sentence that names file and field, and a flip is noticed."""

from __future__ import annotations

import errno
import json
import random

import pytest

from loopscale.errors import UserError
from loopscale.records import Cell, Journal, Trial, read_record, sealed, write_record

TRIAL = Trial(
    key="k1",
    cell=Cell(rule="looped", loops=4, lr=2.0**-6, strength=1.0, seed=0),
    config={"optim": {"lr": 2.0**-6}},
    loss=2.345678901234567,
    diverged=False,
    steps=3,
    seconds=0.5,
    curve=((1, 3.0), (2, None)),
    stream_rms={"initial": (1.0, 2.0), "final": None},
)


@pytest.fixture
def path(tmp_path):
    write_record(tmp_path / "k1.json", TRIAL)
    return tmp_path / "k1.json"


def test_a_record_is_read_as_it_was_written(path):
    assert read_record(path, Trial) == TRIAL
    assert "error" not in json.loads(path.read_text())  # what was not set is not written


def test_unknown_keys_of_a_newer_writer_are_kept(path):
    write_record(path, Trial.model_validate({**TRIAL.model_dump(), "new": 1}))
    assert read_record(path, Trial).model_extra == {"new": 1}


DAMAGES = {
    "a key less": (lambda r: r.pop("loss"), r"k1\.json is damaged at loss"),
    "another type": (lambda r: r.update(cell=[1]), r"k1\.json is damaged at cell"),
    "a null": (lambda r: r["cell"].update(loops=None), r"k1\.json is damaged at cell\.loops"),
    "a number": (lambda r: r.update(loss=2.5), r"k1\.json is damaged or was edited .*seal"),
    "no seal": (lambda r: r.pop("seal"), r"k1\.json is damaged or was edited"),
    "a newer schema": (lambda r: r.update(schema=2), "newer than the 1 known here: upgrade"),
    "a strange schema": (lambda r: r.update(schema=[]), r"has schema \[\], this version reads 1"),
    "true as schema": (lambda r: r.update(schema=True), "has schema True"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_names_file_and_field(path, damage):
    change, said = DAMAGES[damage]
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=said) as error:
        read_record(path, Trial)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "7",
        '"x"',
        "[" * 100_000,
        '{"a":' * 5000,
        '{"loss": NaN}',
        '{"loss": 1e999}',
        '{"x":' * 950 + "1" + "}" * 950,
    ],
)
def test_what_is_no_object_is_a_sentence(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match=r"k1\.json"):
        read_record(path, Trial)


def test_no_flipped_byte_gives_another_record(path):
    whole, generator = path.read_bytes(), random.Random(0)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(flipped))
        try:
            read = read_record(path, Trial)
        except UserError:
            continue
        assert read == TRIAL, (place, bytes(flipped[max(0, place - 20) : place + 20]))


def test_a_record_of_the_older_layout_is_read(path):
    body = {key: value for key, value in sealed(TRIAL).items() if key not in ("schema", "seal")}
    path.write_text(json.dumps(body))
    assert read_record(path, Trial) == TRIAL


def test_a_journal_reads_what_was_appended_and_overwrites_half_a_line(tmp_path):
    journal, reader = Journal(tmp_path), Journal(tmp_path)
    journal.append(TRIAL)
    journal.append(TRIAL)  # a key is written once
    assert reader.read() == [TRIAL] and reader.read() == []
    with journal.path.open("ab") as file:
        file.write(b'{"half')
    assert reader.read() == []
    second = TRIAL.model_copy(update={"key": "k2"})
    Journal(tmp_path).append(second)
    assert reader.read() == [second] and set(Journal(tmp_path).trials) == {"k1", "k2"}
    assert journal.path.read_bytes().count(b"\n") == 2 and b"half" not in journal.path.read_bytes()


def test_a_folder_half_in_the_older_layout_is_read_and_a_damaged_half_is_a_sentence(tmp_path):
    (tmp_path / "trials").mkdir()
    old = tmp_path / "trials" / "k1.json"
    old.write_text(json.dumps(sealed(TRIAL)))
    Journal(tmp_path).append(TRIAL.model_copy(update={"key": "k2"}))
    assert set(Journal(tmp_path).trials) == {"k1", "k2"}
    for left in (old.read_text()[:40], "", "[1]"):
        old.write_text(left)
        with pytest.raises(UserError, match=r"k1\.json is damaged .*: delete it and run the same command again"):
            Journal(tmp_path)


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append(TRIAL)
    before = journal.path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("loopscale.records.journal.os.fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        journal.append(TRIAL.model_copy(update={"key": "k2"}))
    monkeypatch.undo()
    assert set(Journal(tmp_path).trials) <= {"k1", "k2"}
    journal.append(TRIAL.model_copy(update={"key": "k3"}))
    assert journal.path.read_bytes().startswith(before) and set(Journal(tmp_path).trials) == {"k1", "k3"}
