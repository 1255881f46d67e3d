"""Generated command lines, mutated configs, damaged files: one sentence, exit 0, 1 or 2, no traceback, no half file.

Trials run in this process and figures are not drawn (their data are kept), so that a try costs hundredths of a second.
What was tried is counted in the file that LOOPSCALE_FUZZ_RECORD names (benchmarks/campaigns).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from loopscale import cli
from loopscale.cli import main
from loopscale.cli.lazy import LazyGroup
from loopscale.data import Preparation, prepare_data
from loopscale.records import content_hash
from loopscale.report import figure
from loopscale.study import InThisProcess, LocalProcesses
from loopscale.train import generate, make_config, train_run

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
OBJECTIVE = """
import math

def objective(values):
    rate, strength = math.log2(values["lr"]) + 7.3, math.log2(values["strength"])
    return 2 + 0.05 * rate**2 + 0.03 * strength**2 + 0.002 * math.sin(values["seed"] * 31 + rate * 50)
"""
TALLY: dict[str, int] = {}


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(spec: Any) -> dict[str, bytes]:
        return dict.fromkeys(("svg", "png", "pdf"), json.dumps(spec, sort_keys=True).encode())

    monkeypatch.setattr(LocalProcesses, "submit", InThisProcess.submit)
    monkeypatch.setattr(figure.Figure, "spec", lambda self, **asked: {"figure": repr(self)})
    monkeypatch.setattr(figure, "render", drawn)


@pytest.fixture(scope="module", autouse=True)
def record() -> Iterator[None]:
    """Keep what was tried, where the environment names a file for it."""
    yield
    if os.environ.get("LOOPSCALE_FUZZ_RECORD"):
        path = Path(os.environ["LOOPSCALE_FUZZ_RECORD"])
        known = json.loads(path.read_text())["tried"] if path.exists() else {}
        path.write_text(json.dumps({"tried": {**known, **TALLY}}))


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group) and not isinstance(command, LazyGroup):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


STUDY = ["transfer", "--loops", "1,2", "--seeds", "2", "--rules", "looped,none", "--lrs", "2^-8,2^-7,2^-6"]
EXPONENT = [
    *("exponent", "--loops", "1,2", "--outer-rate", "0.05", "--seeds", "1", "--fresh", "1", "--carry", "looped,sqrt"),
    *("--set", "model.width=16", "--set", "model.head_dim=8", "--set", "data.context=8", "--set", "data.batch_size=2"),
    *("--set", "train.steps=3", "--set", "train.eval_batches=1", "--workers", "1"),
]
TUNING = ["--target", "loops=16", "--trials", "8", "--seeds", "2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A text, a config, a run and a prepared set: all tiny."""
    folder = tmp_path_factory.mktemp("fuzz")
    text = folder / "text.txt"
    text.write_text("the loop visits the layer and the stream flows on.\n" * 80)
    config = make_config(
        {
            "model": {"width": 16, "head_dim": 8, "loops": 2},
            "data": {"path": str(text), "context": 16, "batch_size": 4, "validation_fraction": 0.3},
            "train": {"steps": 4, "checkpoint_every": 2, "eval_every": 2, "eval_batches": 1, "device": "cpu"},
        }
    )
    (folder / "config.toml").write_text(config.to_toml())
    train_run(config, folder / "run")
    prepare_data(str(text), folder / "tokens", Preparation(validation_fraction=0.3))
    (folder / "objective.py").write_text(OBJECTIVE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalProcesses, "submit", InThisProcess.submit)
        own = ["--objective", str(folder / "objective.py:objective"), "--workers", "1", "--out"]
        assert main([*STUDY, *own, str(folder / "study")]) == 0
        assert main(["tune", str(folder / "config.toml"), *TUNING, *own, str(folder / "tuning")]) == 0
        assert main([*EXPONENT, "--out", str(folder / "exponent")]) == 0
    names = ("text.txt", "config.toml", "run", "tokens", "objective.py", "study", "tuning", "exponent")
    return {"folder": folder, **{name.partition(".")[0]: folder / name for name in names}}


class HangError(BaseException):
    """No command catches it."""


@contextmanager
def bounded(seconds: float = 60) -> Iterator[None]:
    """Interrupt what takes more of the processor's time: a test names the line that never ends."""

    def ring(number: int, frame: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    try:
        with bounded():
            code = main(arguments)
    except HangError:
        raise AssertionError(f"{arguments}: no end: {capsys.readouterr().err[-300:]}") from None
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
    TALLY["command lines of hostile words"] = 1000


HOSTILE = [
    *WORDS,
    *("+3", "1_000", "0x10", "1.5", "true", "[1,2]", "*", "~", "{x}", "=", "a.b.c=1", "model=1", "train.steps=-1"),
    *("optim.lr=nan", "optim.lr=1e400", "model.width=1000000000", "data.context=0", "data.batch_size=100000000"),
    *("model.layers=1000000", "model.rule=none", "train.trackers=[1]", "data.path=/dev/zero", "data.path=hf:x"),
    *("2^-6", "2^9999", "2^", "1..2", "9..1", "3..", "loops=-1", "loops=1e9", "loops=２", "١٢", "/proc/self/mem"),
    *("os:getcwd", "ray", "slurm", "batched:0", "batched:x", "partition=gpu", "time=1", "<script>", "0.0000001"),
]


@pytest.mark.slow
def test_command_lines_a_step_from_right_ones(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One to three words of a right line are replaced: then it works, or it is refused and leaves nothing new."""
    monkeypatch.chdir(tmp_path)
    own = ["--objective", str(world["objective"]) + ":objective", "--workers", "1"]
    right = {
        "scale": ["--loops", "8", "--layers", "2", "--width", "64", "--base-width", "32"],
        "plan": [str(world["config"]), "--gpus", "4", "--memory", "80GB"],
        "train": [str(world["config"]), "--set", "train.steps=1", "--out", "new"],
        "data prepare": [str(world["text"]), "--out", "new"],
        "data verify": [str(world["tokens"])],
        "generate": ["{run}", "--prompt", "the", "--tokens", "3"],
        "track": ["{run}", "--to", "tensorboard"],
        "report": ["{study}"],
        "explain": ["kappa"],
        "transfer": [*STUDY[1:], *own, "--out", "new"],
        "tune": [str(world["config"]), *TUNING, *own, "--out", "new"],
        "verify": ["{tuning}", "--loops", "2", "--share", "9", *own],
    }
    draw, known = random.Random(3), {" ".join(name): command for name, command in commands(cli.group)}
    wrong: list[str] = []
    for number in range(720):
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        name = list(right)[number % len(right)]
        line = list(right[name])
        for key in ("run", "study", "tuning"):
            if "{" + key + "}" in line:
                line[line.index("{" + key + "}")] = str(shutil.copytree(world[key], tmp_path / key))
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            option = draw.choice([p for p in known[name].params if isinstance(p, click.Option)])
            if draw.random() < 0.4 or SLOW & set(option.opts) or option.is_flag:
                line[draw.randrange(len(line))] = draw.choice(HOSTILE)
            else:
                line += [option.opts[0], draw.choice(HOSTILE)]
        before = set(tmp_path.rglob("*"))
        line = [*name.split(), *(word.format(**world) if word in WORDS else word for word in line)]
        try:
            code, _ = outcome(capsys, line)
        except AssertionError as problem:
            wrong.append(str(problem).splitlines()[0])
            continue
        new = set(tmp_path.rglob("*")) - before
        if (code == 2 and new) or [path for path in new if path.name.startswith(".") and path.name != ".lock"]:
            wrong.append(f"{line}: {code}: leaves {sorted(str(path.relative_to(tmp_path)) for path in new)}")
    assert not wrong, "\n".join([f"{len(wrong)} of 720", *wrong[:20]])
    TALLY["command lines a step from right ones"] = 720


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
    TALLY["configs"] = 500


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
            TALLY[f"damages of a {copy.name}"] = TALLY.get(f"damages of a {copy.name}", 0) + 1


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
        # A damage behind the first step leaves a run that goes on when the shard is mended.
        assert out.exists() is (code == 0) or (out / "metrics.jsonl").read_text().endswith("\n")
        if code == 0:
            lines = (out / "metrics.jsonl").read_text().splitlines()
            losses.append(tuple(json.loads(line)["loss"] for line in lines))
        outcome(capsys, ["data", "verify", str(tokens)])

    damaged(world["tokens"], tokens, check)
    assert len(set(losses)) <= 1


def shown(page: Path) -> str:
    """A page without the time at which it was made."""
    return re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.+Z]*", "", page.read_text())


RECORDS = (".json", ".jsonl", ".toml")


@pytest.mark.slow
def test_damaged_files_of_a_study(world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same page as before, or one that says what it lacks, or a sentence; continuing it gives the same trials."""
    study = tmp_path / "study"
    shutil.copytree(world["study"], study)
    outcome(capsys, ["report", str(study)])
    page, trials = shown(study / "report.html"), (study / "trials.jsonl").read_text().splitlines()
    losses = {line["key"]: line["loss"] for line in map(json.loads, trials)}
    own = ["--objective", str(world["objective"]) + ":objective", "--workers", "1", "--out", str(study)]

    def check() -> None:
        code, _ = outcome(capsys, ["report", str(study)])
        if code == 0 and shown(study / "report.html") != page:
            told = (study / "report.html").read_text()
            assert "holds no trial records" in told or "trials have ended" in told
        code, _ = outcome(capsys, [*STUDY, *own])
        if code == 0:
            lines = map(json.loads, (study / "trials.jsonl").read_text().splitlines())
            assert {line["key"]: line["loss"] for line in lines} == losses

    damaged(world["study"], study, check, lambda path: path.suffix in RECORDS)


@pytest.mark.slow
def test_damaged_files_of_an_exponent_study(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a study: the same page, or one that says what it lacks; going on gives the trials that there were."""
    study = tmp_path / "exponent"
    shutil.copytree(world["exponent"], study)
    outcome(capsys, ["report", str(study)])
    page, trials = shown(study / "report.html"), (study / "trials.jsonl").read_text().splitlines()
    losses = {line["key"]: line["loss"] for line in map(json.loads, trials)}

    def check() -> None:
        code, _ = outcome(capsys, ["report", str(study)])
        if code == 0 and shown(study / "report.html") != page:
            assert "trials have ended" in (study / "report.html").read_text()
        code, _ = outcome(capsys, [*EXPONENT, "--out", str(study)])
        if code == 0:
            lines = map(json.loads, (study / "trials.jsonl").read_text().splitlines())
            assert {line["key"]: line["loss"] for line in lines} == losses

    damaged(world["exponent"], study, check, lambda path: path.suffix in RECORDS)


@pytest.mark.slow
def test_damaged_files_of_a_converted_folder(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Formats of others' have no seal: what is read there is a model, or one sentence."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **sizes))
    llama.save_pretrained(tmp_path / "llama")
    whole, converted = tmp_path / "whole", tmp_path / "converted"
    layers = ["--start", "0", "--stop", "2", "--loops", "2"]
    assert main(["convert", str(tmp_path / "llama"), *layers, "--out", str(whole)]) == 0

    def check() -> None:
        outcome(capsys, ["diagnose", str(converted)])
        code, _ = outcome(capsys, ["convert", str(converted), *layers, "--out", str(tmp_path / "again")])
        assert (tmp_path / "again").exists() is (code == 0)
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        assert not list(tmp_path.glob(".*"))

    damaged(whole, converted, check)


@pytest.mark.slow
def test_damaged_files_of_a_tuning(world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuning, out = tmp_path / "tuning", tmp_path / "out"
    shutil.copytree(world["tuning"], tuning)
    own = ["--objective", str(world["objective"]) + ":objective", "--workers", "1"]
    outcome(capsys, ["report", str(tuning)])
    page = shown(tuning / "report.html")

    def check() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if outcome(capsys, ["report", str(tuning)])[0] == 0:
            assert shown(tuning / "report.html") == page
        outcome(capsys, ["train", str(world["config"]), "--from", str(tuning / "tuned.toml"), "--out", str(out)])
        outcome(capsys, ["verify", str(tuning), "--loops", "2", "--share", "9", *own])
        outcome(capsys, ["tune", str(world["config"]), *TUNING, *own, "--out", str(tuning)])

    damaged(world["tuning"], tuning, check, lambda path: path.suffix in RECORDS)


def other_values(text: str, draw: random.Random) -> Iterator[str]:
    """A record with one value of another kind, under a seal that fits: as if somebody had edited it."""
    places: list[tuple[Any, ...]] = []

    def walk(value: Any, place: tuple[Any, ...]) -> None:
        for key in list(value) if isinstance(value, dict) else range(min(3, len(value))) if value else []:
            places.append((*place, key))
            if isinstance(value[key], (dict, list)):
                walk(value[key], (*place, key))

    walk(json.loads(text), ())
    for kind in (None, "x", -1, 0, 1e308, [], {}, True, [[1]], "a" * 500, [None], 10**30, "²"):
        record = json.loads(text)
        *above, last = draw.choice([place for place in places if place[0] not in ("seal", "schema")])
        inner = record
        for key in above:
            inner = inner[key]
        inner[last] = kind
        body = {key: value for key, value in record.items() if key != "seal"}
        yield json.dumps({**body, "seal": content_hash(body)})


@pytest.mark.slow
@pytest.mark.parametrize("what", ["study", "tuning", "exponent", "run", "tokens"])
def test_records_with_values_of_another_kind(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """No value under a right seal is a traceback; `outcome` looks at exit code and sentence."""
    copy, draw, own = tmp_path / "copy", random.Random(4), ["--objective", str(world["objective"]) + ":objective"]
    use = {
        "study": [["report", str(copy)], [*STUDY, *own, "--workers", "1", "--out", str(copy)]],
        "tuning": [
            ["report", str(copy)],
            ["verify", str(copy), "--loops", "2", "--share", "9", *own, "--workers", "1"],
            ["tune", str(world["config"]), *TUNING, *own, "--workers", "1", "--out", str(copy)],
        ],
        "exponent": [["report", str(copy)], [*EXPONENT, "--out", str(copy)]],
        "run": [["report", str(copy)], ["train", "--resume", str(copy)]],
        "tokens": [["data", "verify", str(copy)]],
    }[what]
    for file in sorted(path for path in world[what].rglob("*.json*") if path.name != "tokenizer.json"):
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        for _ in range(2):
            at = draw.randrange(len(lines))
            for line in other_values(lines[at], draw):
                for command in use:
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(world[what], copy)
                    (copy / file.relative_to(world[what])).write_text(
                        "\n".join([*lines[:at], line, *lines[at + 1 :]]) + "\n"
                    )
                    outcome(capsys, command)
                told = f"values of another kind in a {what}"
                TALLY[told] = TALLY.get(told, 0) + 1


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
