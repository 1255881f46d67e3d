"""A tied readout from before its embedding was multiplied is another network: loading it says so."""

import pytest

from loopscale.records import Provenance, read_record, write_record
from loopscale.train import make_config, resume_run, train_run
from loopscale.train.load_model import load_model

TIED = {"width": 32, "head_dim": 16, "layers": 1, "loops": 2, "tied_readout": True, "base_width": 16}
CONFIG = {
    "model": TIED,
    "data": {"path": "synthetic:copy", "context": 8, "batch_size": 2},
    "train": {"steps": 1, "eval_batches": 1, "device": "cpu", "precision": "fp32"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied") / "run"
    train_run(make_config(CONFIG), folder)
    return folder


def test_a_run_of_today_says_the_factor_on_its_embedding_and_loads_in_silence(run):
    said = []
    load_model(run, said.append)
    assert said == [] and read_record(run / "provenance.json", Provenance).tied_entry == 4.0


def test_an_older_one_is_told_on_loading_and_on_resuming(run):
    known = read_record(run / "provenance.json", Provenance).model_dump(mode="json", exclude_unset=True)
    old = {name: value for name, value in known.items() if name != "tied_entry"} | {"commit": "abc123"}
    write_record(run / "provenance.json", Provenance(**old))
    said = []
    load_model(run, said.append)
    assert len(said) == 1 and "its stream enters 4 times as large here" in said[0] and "use abc123" in said[0]
    said.clear()
    resume_run(run, warn=said.append)
    assert any("another network" in sentence for sentence in said)
