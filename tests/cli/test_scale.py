"""`loopscale scale`: the numbers of the rule, for people and for machines."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopscale.cli import main


def said(capsys, *arguments):
    code = main(["scale", *arguments])
    return code, capsys.readouterr()


def test_the_table_of_the_issue(capsys):
    code, out = said(capsys, "--loops", "8", "--layers", "4", "--width", "512", "--base-width", "128", "--json")
    record = json.loads(out.out)
    assert code == 0 and record["residual_scale"] == 0.0625 and record["output_multiplier"] == 0.25
    values = {row["name"]: row["value"] for row in record["values"]}
    assert values["hidden.lr"] == 0.5 / 4 and values["embedding.lr"] == 1


def test_base_layers_make_the_count_relative(capsys):
    _, out = said(capsys, "--loops", "8", "--layers", "4", "--base-layers", "4", "--json")
    assert json.loads(out.out)["residual_scale"] == 0.125


def test_the_table_for_people_names_reason_and_source(capsys):
    code, out = said(capsys, "--loops", "8", "--layers", "4")
    assert code == 0 and "0.0625" in out.out and "arXiv:2606.18524" in out.out


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--loops", "0", "--layers", "4"], "loops must be a whole number of at least 1, got 0"),
        (["--loops", "2", "--layers", "-1"], "layers must be a whole number of at least 1, got -1"),
        (["--loops", "2", "--layers", "1", "--rule", "loped"], "did you mean 'looped'?"),
        (["--loops", "2", "--layers", "1", "--base-width", "64"], "--base-width needs --width"),
        (["--loops", "2", "--layers", "1", "--strength", "nan"], "strength must be a number of at least 0"),
        (["--loops", "2"], "--layers"),
        (["--loops", "x", "--layers", "1"], "'x' is not a whole number"),
    ],
)
def test_mistakes_get_one_sentence(capsys, arguments, words):
    code, out = said(capsys, *arguments)
    assert code == 2 and words in out.err and len(out.err.strip().splitlines()) == 1 and not out.out


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(max_size=8), max_size=4))
def test_no_argument_makes_a_traceback(arguments):
    assert main(["scale", *arguments]) in (0, 2)
