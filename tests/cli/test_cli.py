"""The command line frame: one sentence and exit 2 for every mistake, and no torch where none is needed."""

from __future__ import annotations

import subprocess
import sys
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
            ["train", "--resum", "x"],
            "unknown option '--resum' of loopscale train: did you mean '--resume'? "
            "known: --continue, --from, --help, --json, --out, --resume, --set",
        ),
        (
            ["--loops", "3"],
            "unknown option '--loops' of loopscale: it takes --version, --help; others come after a command, such as "
            "loopscale scale --loops 3",
        ),
        (["train"], "give either a config file or --resume DIR: loopscale train config.toml"),
        (
            ["train", "--resume", "x", "--set", "optim.lr=1"],
            "--resume continues a run exactly, so it takes no --set, --from or --out: leave them out",
        ),
        (["generate", "x"], "missing option '--prompt': see loopscale generate --help"),
        (["generate", "x", "--prompt", "a", "--tokens", "many"], "invalid value for '--tokens': 'many' is not a valid"),
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


def test_a_command_whose_module_is_absent_is_not_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.group, "places", {**cli.COMMANDS, "fly": "loopscale.cli.fly:command"})
    assert "fly" not in said(capsys, "--help")[1]
    assert said(capsys, "fly")[2].startswith("loopscale: unknown command 'fly': ")


def test_the_frame_does_not_import_torch() -> None:
    code = "import sys; from loopscale.cli import main; main(['train']); main(['--help']); "
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
