"""Generated command lines, mutated configs, damaged files: one sentence, exit 0, 1 or 2, no traceback, no half file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from loopscale import cli
from loopscale.cli import main
from loopscale.cli.lazy import LazyGroup
from loopscale.data import Preparation, prepare_data
from loopscale.train import generate, parse_config, train_run

WORDS = [
    *(
        "",
        "-",
        "0",
        "1",
        "-1",
        "3",
        "²",
        "٣",
        "1e400",
        "nan",
        "inf",
        "None",
        "9" * 400,
        "a" * 300,
        "a\nb\x1b[1m",
        "\udc80",
    ),
    *(
        "1:4",
        "1,2,4",
        "lr=0.1",
        "loops=2",
        "x=y=z",
        "optim.lr=0.01",
        "model.loops=two",
        "../..",
        "/dev/null",
        "/dev/zero",
    ),
    *(
        "looped",
        "file.py:make_model",
        "no.module:f",
        "{folder}",
        "{text}",
        "{config}",
        "{run}",
        "{tokens}",
        "{folder}/new",
    ),
]
# What a fuzzed command may not start: a server that waits, a long study, the network.
SLOW = {"--serve", "--live", "--online"}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group) and not isinstance(command, LazyGroup):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A text, a config, a run and a prepared set: all tiny."""
    folder = tmp_path_factory.mktemp("fuzz")
    text = folder / "text.txt"
    text.write_text("the loop visits the layer and the stream flows on.\n" * 80)
    config = parse_config(
        {
            "model": {"width": 16, "head_dim": 8, "loops": 2},
            "data": {"path": str(text), "context": 16, "batch_size": 4, "validation_fraction": 0.3},
            "train": {"steps": 4, "checkpoint_every": 2, "eval_every": 2, "eval_batches": 1, "device": "cpu"},
        }
    )
    (folder / "config.toml").write_text(config.to_toml())
    train_run(config, folder / "run")
    prepare_data(str(text), folder / "tokens", Preparation(validation_fraction=0.3))
    names = ("text.txt", "config.toml", "run", "tokens")
    return {"folder": folder, **{name.partition(".")[0]: folder / name for name in names}}


def outcome(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    code = main(arguments)
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1] if said.strip() else ""
    shown = f"{arguments}: {code}: {said[-600:]}"
    assert code in (0, 1, 2), shown
    assert "Traceback" not in said and "a mistake of loopscale's" not in said, shown
    if code == 2 and "Usage" not in said:
        assert last.startswith("loopscale: ") and len(last) <= 315, shown
    return code, last


def generated(draw: random.Random, world: dict[str, Path], name: tuple[str, ...], command: click.Command) -> list[str]:
    line = list(name)
    for parameter in command.params:
        flag = next((word for word in parameter.opts if word.startswith("--")), None)
        if isinstance(parameter, click.Argument):
            if draw.random() < 0.9:
                line.append(draw.choice(WORDS))
        elif flag and flag not in SLOW and draw.random() < 0.25:
            line += [flag] if getattr(parameter, "is_flag", False) else [flag, draw.choice(WORDS)]
    return [word.format(**world) if word.startswith("{") else word for word in line]


# Those that train for long when every word fits are given one that does not: the point here is what is refused.
STUDIES = {"transfer", "tune", "verify", "exponent", "diagnose", "evaluate"}


@pytest.mark.slow
def test_generated_command_lines(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw, known = random.Random(0), list(commands(cli.group))
    codes: dict[int, int] = {}
    wrong: list[str] = []
    for number in range(1000):
        name, command = known[number % len(known)]
        line = generated(draw, world, name, command)
        if name[0] in STUDIES:
            line += ["--out", "/dev/null/x"]
        try:
            code, _ = outcome(capsys, line)
            codes[code] = codes.get(code, 0) + 1
        except AssertionError as problem:
            wrong.append(str(problem).splitlines()[0])
    assert not wrong, "\n".join([f"{len(wrong)} of 1000", *wrong[:20]])
    assert codes[2] > 500


VALUES: list[Any] = [None, "x", -1, 0, 10**30, 1e-30, [], {}, True, "²", "a" * 400, [1, 2], {"kind": "x"}, float("nan")]


@pytest.mark.slow
def test_mutated_configs(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(1)
    text = world["config"].read_text()
    for number in range(500):
        lines = text.splitlines()
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(lines))
            key = lines[at].partition("=")[0]
            value = draw.choice(VALUES)
            shown = "nan" if value != value else json.dumps(value) if value is not None else ""
            lines[at] = draw.choice(
                [f"{key}= {shown}", lines[at][: draw.randint(0, len(lines[at]))], "", lines[at] * 2]
            )
        (tmp_path / "c.toml").write_text("\n".join(lines), errors="replace")
        out = tmp_path / f"run-{number}"
        code, _ = outcome(capsys, ["train", "c.toml", "--out", str(out), "--set", "train.steps=1"])
        assert out.exists() is (code != 2) or code == 2, lines
        shutil.rmtree(out, ignore_errors=True)
        outcome(capsys, ["plan", "c.toml", "--gpus", "4"])


def flips(content: bytes, draw: random.Random) -> Iterator[bytes]:
    """Twenty ways to damage a file."""
    for _ in range(6):
        at = draw.randrange(max(len(content), 1))
        yield content[:at] + bytes([(content[at] if content else 0) ^ (1 << draw.randrange(8))]) + content[at + 1 :]
    for _ in range(3):
        yield content[: draw.randrange(max(len(content), 1))]
    yield from (b"", b"\0" * 64, b"[]", b"{}", b"null", b"7", b"[" * 20000, b'{"a": ' * 5000, b"\xff\xfe", content * 2)
    yield b'{"step": 1, "schema": 99}\n'


def damaged(
    whole: Path, copy: Path, check: Callable[[], object], names: Callable[[Path], bool] = lambda path: True
) -> None:
    """Damage each file of a folder in twenty ways and let `check` use it."""
    draw = random.Random(2)
    for file in sorted(path for path in whole.rglob("*") if path.is_file() and names(path)):
        for content in flips(file.read_bytes(), draw):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            (copy / file.relative_to(whole)).write_bytes(content)
            check()


@pytest.mark.slow
def test_damaged_files_of_a_run(world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damage is told, or what is used is what was trained: never a different text, page or training."""
    run = tmp_path / "run"
    truth = generate(world["run"], "the ", 8, 0.0)
    before = generate(shutil.copytree(world["run"], run), "the ", 8, 0.0)
    shutil.rmtree(run / "checkpoints/step-000004")
    older = generate(run, "the ", 8, 0.0)
    assert truth == before
    losses = [json.loads(line)["loss"] for line in (world["run"] / "metrics.jsonl").read_text().splitlines()]

    def check() -> None:
        code = main(["generate", str(run), "--prompt", "the ", "--tokens", "8", "--temperature", "0"])
        captured = capsys.readouterr()
        assert code in (0, 2) and "Traceback" not in captured.err and "mistake of loopscale" not in captured.err
        if code == 0:
            assert captured.out.rstrip("\n") in (truth, older)
        outcome(capsys, ["report", str(run)])
        code, _ = outcome(capsys, ["train", "--resume", str(run)])
        if code == 0:
            now = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
            assert now == losses or "config.toml" in str(run)

    damaged(world["run"], run, check, lambda path: path.name not in (".lock", "config.toml"))


@pytest.mark.slow
def test_damaged_configs_of_a_run(world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """config.toml may be edited: then what it says must be used or refused, with a warning that names the value."""
    run = tmp_path / "run"

    def check() -> None:
        for command in (["generate", str(run), "--prompt", "the ", "--tokens", "2"], ["report", str(run)]):
            outcome(capsys, command)
        outcome(capsys, ["train", "--resume", str(run)])

    damaged(world["run"], run, check, lambda path: path.name == "config.toml")


@pytest.mark.slow
def test_damaged_files_of_a_prepared_set(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, out = tmp_path / "tokens", tmp_path / "out"
    train = ["train", str(world["config"]), "--set", f"data.path={tokens}", "--set", "train.steps=2", "--out", str(out)]
    losses = []

    def check() -> None:
        shutil.rmtree(out, ignore_errors=True)
        code, _ = outcome(capsys, train)
        assert out.exists() is (code == 0)
        if code == 0:
            lines = (out / "metrics.jsonl").read_text().splitlines()
            losses.append(tuple(json.loads(line)["loss"] for line in lines))
        outcome(capsys, ["data", "verify", str(tokens)])

    damaged(world["tokens"], tokens, check)
    assert len(set(losses)) <= 1


@pytest.mark.slow
def test_damaged_files_of_an_export(world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    assert main(["export", str(world["run"]), str(whole)]) == 0
    capsys.readouterr()
    damaged(
        whole,
        copy,
        lambda: outcome(capsys, ["diagnose", str(copy)]),
        lambda path: path.name in ("config.json", "README.md"),
    )
