"""The command line frame: one sentence and exit 2 for every mistake, and no torch where none is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopscale import cli
from loopscale.cli import main


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'? known: "),
        (
            ["diagnose", "x.py:f", "--loops", "eight"],
            "invalid value for '--loops': 'eight' is not a whole number: see ",
        ),
        (
            ["transfer", "--target", "loops=8"],
            "unknown option '--target' of loopscale transfer: exponent and tune have it; here are ",
        ),
        (
            ["train", "--resum", "x"],
            "unknown option '--resum' of loopscale train: did you mean '--resume'? "
            "known: --continue, --from, --help, --init-from, --json, --keys, --model, --out, --profile, --resume, --rule, "
            "--set",
        ),
        (
            ["--loops", "3"],
            "unknown option '--loops' of loopscale: it takes --version, --help; others come after a command, such as "
            "loopscale scale --loops 3",
        ),
        (["train"], "give either a config file (or --model file.py:make_model) or --resume DIR: loopscale train"),
        (
            ["train", "--resume", "x", "--out", "y"],
            "--resume continues a run exactly, so it takes no --from, --init-from, --rule or --out: leave them out",
        ),
        (["generate", "x"], "missing option '--prompt': see loopscale generate --help"),
        (["generate", "x", "--prompt", "a", "--tokens", "many"], "invalid value for '--tokens': 'many' is not a whole"),
        (["plan", "x.toml", "--price", "free"], "invalid value for '--price': 'free' is not a number: see"),
        (["verify", "x", "--seeds", "0"], "invalid value for '--seeds': 0 is not from 1 to 1000: see"),
        (["transfer", "--rules", "looped none"], "unknown rule 'looped none': put commas between: looped,none"),
        (["transfer", "--rules", "looped", "--rules", "none"], "--rules is given twice: give it once (several"),
        (["data", "prepare", "x", "--out", "a", "--out", "b"], "--out is given twice"),
        (["exponent", "--target", "loops=32 layers=8"], "--target 'loops=32 layers=8' has no commas between: "),
        (["tune", "x.toml", "--loops", "8"], "unknown option '--loops' of loopscale tune: write --target loops=N"),
        (
            ["train", "x.toml", "--lr", "1"],
            "unknown option '--lr' of loopscale train: it is a key of the config, --set opt",
        ),
        (
            ["train", "x.toml", "steps=5"],
            "got unexpected extra argument (steps=5): values of the config go behind --set",
        ),
        (["train", "m.py:make"], "m.py:make is a model of yours, no config: name it by --model m.py:make"),
        (["verify", "nowhere"], "nowhere is no folder: "),
        (["convert", "nowhere", "--loops", "4", "--out", "x"], "there is no folder nowhere: "),
        (["evaluate", "nowhere", "--tasks", "nope"], "nowhere is no folder: "),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder (there is no such folder): "),
    ],
)
def test_each_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    code, out, err = said(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith(f"loopscale: {sentence}") and err.count("\n") == 1


def test_ctrl_c_anywhere_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.group, "main", interrupted)
    assert said(capsys) == (130, "", "loopscale: stopped by Ctrl-C\n")


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys)
    assert code == 2 and "train" in err and "Exit codes" in err
    assert said(capsys, "--help")[0] == 0
    assert said(capsys, "--version")[1].startswith("loopscale ")


def test_train_then_generate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(8):
        (text / f"{number}.txt").write_text(f"document {number} says hello to the loop " * 40)
    config = tmp_path / "small.toml"
    config.write_text(
        "[model]\nwidth = 16\nhead_dim = 8\nloops = 2\n"
        f"[data]\npath = '{text}'\ncontext = 16\nbatch_size = 2\nvalidation_fraction = 0.2\n[train]\nsteps = 3\n"
    )
    code, out, err = said(capsys, "train", str(config), "--out", str(tmp_path / "run"), "--set", "train.steps=4")
    assert code == 0 and out.startswith("finished 4 steps") and f"run: {tmp_path / 'run'}" in out
    assert "step 4/4, loss " in err
    code, out, _ = said(capsys, "generate", str(tmp_path / "run"), "--prompt", "hello", "--tokens", "5")
    assert code == 0 and out.startswith("hello")


def raising(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr(cli.group, "main", fail)


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "cannot use /x/y (Permission denied): mend its permissions"),
        (OSError(36, "File name too long", "n" * 999), "cannot use nnn"),
        (OSError(28, "No space left on device"), "the system refused to write or read (No space left on device): free"),
        (MemoryError(), "there is not enough memory for this: try a smaller model"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 8 bytes"), "there is not enough memory"),
        (RecursionError("deep"), "the input is nested too deeply to be read"),
        (UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed"), "a name or text cannot be written"),
        (KeyError("x"), "this is a mistake of loopscale's, please report it (KeyError: 'x' at test_cli.py:"),
    ],
)
def test_whatever_is_raised_is_one_sentence_and_exit_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, raised: BaseException, sentence: str
) -> None:
    raising(monkeypatch, raised)
    code, out, err = said(capsys)
    assert (code, out) == (2, "") and err.startswith(f"loopscale: {sentence}")
    assert err.count("\n") == 1 and len(err) <= 315 and "Traceback" not in err


def test_a_message_is_one_line_whatever_the_input(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("w" * 5000, "a\nb\x1b[31m\u202e", "\udc80"):
        code, _, err = said(capsys, "generate", word, "--prompt", "a")
        assert code == 2 and err.count("\n") == 1 and len(err) <= 315 and "\x1b" not in err and "\u202e" not in err


@pytest.mark.parametrize("number", ["²", "٣٣٣٣٣٣x", "１e", "Ⅷ", "-", "9" * 5000, "9" * 400])
def test_numbers_of_other_scripts_are_read_or_refused(capsys: pytest.CaptureFixture[str], number: str) -> None:
    for arguments in (["scale", "--loops", number], ["diagnose", "x", "--loops-range", f"{number}:{number}"]):
        code, _, err = said(capsys, *arguments)
        assert code == 2 and err.count("\n") == 1 and "mistake of loopscale" not in err


@pytest.mark.parametrize(
    "line",
    [
        "generate run --prompt a --tokens",
        "generate run --prompt a --loops",
        "transfer --seeds",
        "exponent --seeds",
        "exponent --fresh",
        "tune small.toml --target loops=8 --seeds",
        "tune small.toml --target loops=8 --trials",
        "verify tuning --loops 2 --seeds",
    ],
)
def test_what_is_asked_for_comes_to_an_end(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text("[model]\nwidth = 64\n")
    code, _, err = said(capsys, *line.split(), "9" * 30)
    assert code == 2 and "from 1 to 1" in err.replace("from 3", "from 1").replace("1<=x<=", "from 1 to ")
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_every_command_of_the_table_is_there():
    assert list(cli.COMMANDS) == cli.group.list_commands(None)
