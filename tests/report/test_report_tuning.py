"""The page of a tuning: every part from the records, escaped; unfinished and damaged folders are one sentence."""

import html
import json
import re
import shutil

import pytest
from browsing import Visit

from loopscale import UserError
from loopscale.cli import main
from loopscale.report import write_tune_report

OBJECTIVE = """
import math
def objective(values):
    if values["lr"] > 0.03:
        raise RuntimeError("<b>too fast</b>")
    rate, strength = math.log2(values["lr"]) + 6.4, math.log2(values["residual_scale"] * values["loops"])
    wiggle = 0.002 * math.sin(977 * values["seed"] + 13 * rate)
    return 2 + 0.06 * rate**2 + 0.04 * strength**2 + 0.01 * values["seed"] + wiggle
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, in_this_process):
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "mine.py").write_text(OBJECTIVE)
    (folder / "small.toml").write_text("[model]\nwidth = 64\nlayers = 1\n[optim]\nlr = 0.01\n")
    out, place = str(folder / "t"), f"{folder / 'mine.py'}:objective"
    size = ["--target", "loops=16,layers=2", "--workers", "1", "--out", out]
    later = ["--loops", "2,4", "--layers", "2", "--share", "9", "--seeds", "2", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        assert main(["tune", str(folder / "small.toml"), "--objective", place, *size]) == 0
        verified = main(["verify", out, "--objective", place, *later])
    assert verified in (0, 1)
    return folder / "t"


def test_the_page_says_what_the_plan_says(tuned):
    page, plan = (tuned / "report.html").read_text(), json.loads((tuned / "plan.json").read_text())
    assert plan["sentence"].split(",")[0] in page and all(html.escape(said) in page for said in plan["says"])
    assert (
        all(html.escape(said) in page for said in plan["verification"]["says"]) and "Which b holds over layers" in page
    )
    assert "interval" not in plan["sentence"]  # the numbers alone; why there is no interval stands below them
    assert all(said in page for said in plan["verification"]["not_verified"])
    assert "<b>too fast</b>" not in page and "&lt;b&gt;too fast" in page
    assert all(row["label"] in page for row in plan["verification"]["local"])


def changed(tuned, copy, **proxy):
    """The page of a copy of the tuning whose plan says something else of its proxy."""
    shutil.copytree(tuned, copy)
    plan = json.loads((copy / "plan.json").read_text())
    plan["proxy"].update(proxy)
    for row in plan["rows"]:
        if row["name"] in proxy.get("intervals", {}):
            row["interval"] = proxy["intervals"][row["name"]]
    del plan["seal"]
    (copy / "plan.json").write_text(json.dumps(plan | {"schema": 2}))  # that of an earlier version, without a seal
    return write_tune_report(copy).read_text()


def test_no_interval_and_an_open_one_are_said_in_table_and_figure(tuned, tmp_path):
    why = "the surface has no minimum inside what was explored"
    nothing = changed(
        tuned, tmp_path / "a", intervals=dict.fromkeys(("lr", "strength")), interval_note=f"no intervals: {why}"
    )
    assert nothing.count(f"without a bar: no interval is known ({why})") == 2
    assert nothing.count("none, see above") == 2 and "the bar its 95 % interval" not in nothing
    spans = {"lr": [0.01, 0.02], "strength": [0.5, 4.0]}
    open_one = changed(tuned, tmp_path / "b", intervals=spans, open={"strength": "above"})
    assert "[0.5, 4], open above" in open_one and "the bar its 95 % interval, open above" in open_one
    assert "[0.01, 0.02]<" in open_one


def test_unfinished_and_damaged_tunings_are_one_sentence(tuned, tmp_path, capsys):
    copy = tmp_path / "t"
    shutil.copytree(tuned, copy)
    damaged = json.loads((copy / "plan.json").read_text())
    del damaged["proxy"]["values"]
    (copy / "plan.json").write_text(json.dumps(damaged))
    before = (copy / "report.html").read_bytes()
    with pytest.raises(UserError, match=r"plan\.json is damaged at proxy\.values"):
        write_tune_report(copy)
    assert (copy / "report.html").read_bytes() == before
    (copy / "plan.json").unlink()
    assert main(["report", str(copy)]) == 2
    assert "has no plan yet: run `loopscale tune` again" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "is neither a study, a tuning nor a run" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_draws_its_figures(browser, tuned, width, scheme):
    with Visit(browser, tuned / "report.html", width, scheme) as visit:
        assert visit.page.locator(".chart").count() == 3
        visit.fits()
        visit.is_clean()


def test_the_strip_of_the_second_value_is_labelled_no_further_than_it_goes(tuned):
    """Its values end before those that the axis of another figure needs: a label beyond the strip names no colour."""
    text = (tuned / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, flags=re.S)
    shaded = 0
    for figure in json.loads(found.group(1))["figures"]:
        values = [row["shade"] for row in figure["spec"]["data"]["values"] if "shade" in row and "shape" not in row]
        for at in re.findall(r'"field": "shade", "legend": \{[^}]*"values": \[([^\]]*)\]', json.dumps(figure["spec"])):
            shaded += 1
            assert all(min(values) <= float(label) <= max(values) for label in at.split(",") if label)
    assert shaded, "a tuning of two values colours each figure by the other"
