"""Whatever is written, is written aside through one door: full disks are a sentence, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import loopscale
from loopscale.errors import UserError
from loopscale.files import folder_aside, replacing, write_text

SOURCE = Path(loopscale.__file__).parent


def test_no_other_file_of_the_package_makes_a_name_aside() -> None:
    makers = ("tempfile", "mkdtemp", "mkstemp", "token_hex")
    found = [path.name for path in SOURCE.rglob("*.py") if any(word in path.read_text() for word in makers)]
    assert sorted(found) == ["checkpoint.py", "files.py"]  # ranks write one checkpoint together, beside its place


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (OSError(28, "No space left on device"), "the disk is full while writing"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (Exception("Permission denied (os error 13)"), "Permission denied.*name another place"),
    ],
)
def test_a_disk_that_refuses_in_the_words_of_a_library_is_a_sentence(
    tmp_path: Path, raised: Exception, says: str
) -> None:
    with pytest.raises(UserError, match=says), folder_aside(tmp_path / "deep" / "out") as aside:
        (aside / "half").write_text("x")
        raise raised
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_killed_writer_left_is_removed_by_the_next_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    for name in (".plan.json.0123abcd", ".other.json.0123abcd", ".plan.json.bak"):
        (tmp_path / name).write_text("half")
    with replacing(tmp_path / "plan.json") as first:
        write_text(tmp_path / "plan.json", "second")
        assert first.exists()
        first.write_text("first")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.json.0123abcd", ".plan.json.bak", "plan.json"]
    assert (tmp_path / "plan.json").read_text() == "first"


def test_other_mistakes_stay_what_they_are_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder_aside(tmp_path / "out"):
        raise KeyError("mine")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".out.12345678"
    left.mkdir()
    (left / "half").write_text("x")
    with folder_aside(tmp_path / "out") as aside:
        (aside / "whole").write_text("y")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole"]
