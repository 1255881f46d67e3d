"""The config: round trip, and one sentence for every mistake."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopscale.errors import UserError
from loopscale.nn import ModelConfig
from loopscale.train import TrainConfig, load_config, make_config
from loopscale.train.config import ModelSection
from loopscale.train.load import known_keys

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path: Path, *sets: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, sets)
    return str(caught.value)


def test_the_model_section_is_the_models_config() -> None:
    assert set(ModelSection.model_fields) - {"factory"} == {field.name for field in dataclasses.fields(ModelConfig)}
    assert ModelConfig(**ModelSection(vocab_size=256).model_dump()) == ModelConfig()


def test_the_example_is_a_config() -> None:
    example = Path(__file__).parents[2] / "examples" / "tiny.toml"
    assert load_config(example).data.path == "stdlib"


def test_set_reaches_every_section(config_file: Path) -> None:
    config = load_config(config_file, ["model.loops=8", "optim.lr=1e-3", "train.device=cpu", "optim.betas=[0.8, 0.99]"])
    assert (config.model.loops, config.optim.lr, config.train.device) == (8, 1e-3, "cpu")
    assert config.optim.betas == (0.8, 0.99)


@quick
@given(
    loops=st.integers(1, 64),
    lr=st.floats(1e-12, 1e6),
    clip=st.floats(0, 1e3),
    seed=st.integers(0, 2**31 - 1),
    path=st.text(st.characters(codec="utf-8"), min_size=1),
)
def test_toml_gives_the_config_back(tmp_path: Path, loops: int, lr: float, clip: float, seed: int, path: str) -> None:
    values = {
        "model": {"loops": loops},
        "data": {"path": path},
        "optim": {"lr": lr, "clip": clip},
        "train": {"seed": seed},
    }
    config = make_config(values)
    file = tmp_path / "c.toml"
    file.write_bytes(config.to_toml().encode())
    assert load_config(file) == config


@quick
@given(
    section=st.sampled_from(sorted(known_keys())),
    data=st.data(),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.dates(),
)
def test_any_value_is_taken_or_refused_in_one_sentence(section: str, data: st.DataObject, value: object) -> None:
    key = data.draw(st.sampled_from(known_keys()[section]))
    try:
        assert isinstance(make_config({section: {key: value}}), TrainConfig)
    except UserError as mistake:
        assert "\n" not in str(mistake) and key in str(mistake)


@quick
@given(rate=st.one_of(st.floats(max_value=0), st.just(math.nan), st.just(math.inf)))
def test_a_rate_that_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"^config key 'optim\.lr' cannot be .*: it must be"):
        make_config({"optim": {"lr": rate}})


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("optim.lr=0", "config key 'optim.lr' cannot be 0: it must be greater than 0"),
        ("optim.lr=-1.0", "config key 'optim.lr' cannot be -1.0: it must be greater than 0"),
        ("optim.lr=nan", "config key 'optim.lr' cannot be nan: it must be a finite number"),
        ("model.loops=0", "config key 'model.loops' cannot be 0: it must be greater than or equal to 1"),
        ("model.layers=-2", "config key 'model.layers' cannot be -2: it must be greater than or equal to 1"),
        ("model.loops=many", "config key 'model.loops' cannot be 'many': it must be a whole number"),
        (
            "train.trackers=wandb",
            "config key 'train.trackers' cannot be 'wandb': it must be a list, such as [\"wandb\"]",
        ),
        (
            "optim.schedule=cosin",
            "config key 'optim.schedule' cannot be 'cosin': it must be 'constant', 'cosine', 'linear' or 'wsd'",
        ),
        ("train.lr=0.1", "unknown config key 'train.lr': did you mean 'optim.lr'?"),
        (
            "optm.lr=0.1",
            "unknown config key 'optm': did you mean 'optim'? known: data, model, optim, train",
        ),
        ("optim.lr", "--set 'optim.lr' is not of the form section.key=value, for example --set optim.lr=0.01"),
        ("lr=0.1", "--set 'lr' is not section.key: did you mean 'optim.lr'?"),
        ("model.head_dim=7", "width 16 is not a multiple of head_dim 7: change one of them"),
    ],
)
def test_each_mistake_has_its_sentence(config_file: Path, assignment: str, sentence: str) -> None:
    assert refused(config_file, assignment) == sentence


def test_an_unknown_key_names_the_nearest(config_file: Path) -> None:
    assert refused(config_file, "model.loop=3").startswith("unknown config key 'model.loop': did you mean 'loops'?")
    assert "did you mean 'looped'?" in refused(config_file, "model.rule=loped")


def test_files_that_are_no_config(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.toml").startswith(f"cannot read the config {tmp_path / 'no.toml'} (no such file")
    (tmp_path / "bad.toml").write_text("[model\n")
    assert refused(tmp_path / "bad.toml").startswith(f"{tmp_path / 'bad.toml'} is not valid TOML: ")
    (tmp_path / "binary.toml").write_bytes(b"\xff\x00\xfe")
    assert "is not a text file" in refused(tmp_path / "binary.toml")
    (tmp_path / "flat.toml").write_text("model = 3\n")
    assert refused(tmp_path / "flat.toml") == (
        "config section 'model' must be a table of keys, not 3: write [model] and its keys below it"
    )
