"""The page as text: its numbers are the record's, its order is fixed, and no string of a study escapes into markup."""

from __future__ import annotations

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_study import LOOPS, SHAPES, result, trial

from loopscale.records import Result, Trial, clean
from loopscale.report import Section, Table, render, render_page, study_info, write_report
from loopscale.report.figures import study_figures
from loopscale.report.info import StudyInfo
from loopscale.report.page import embed_json, escape
from loopscale.report.palette import number
from loopscale.report.study_page import page

NASTY = (
    '<script>alert(1)</script>', "</script><b>", "</style>", "%{x}", "<!--", "]]>", "&lt;i&gt;", '" onload="x', "$a$b$",
    "_hidden", "\x00", "\ud800", "\u2028", "javascript:", "a" * 300, "",
)  # fmt: skip
nasty = st.one_of(st.sampled_from(NASTY), st.text(st.characters(), max_size=30))


class Reader(HTMLParser):
    """What a browser would see: tags, attributes of every tag, and the text outside script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.words, self._inside = [], set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.words.append(data)


def drawn(text: str) -> list[dict]:
    """The specifications that the page draws."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S).group(1)
    assert "<" not in found
    return json.loads(found)["figures"]


def test_numbers_of_the_page_are_those_of_the_result(study):
    words = " ".join(Reader((study / "report.html").read_text()).words)
    for rule in json.loads((study / "result.json").read_text())["rules"].values():
        assert rule["sentence"] in words
        for value in (rule["slope"], *rule["slope_interval"], *[best["loss"] for best in rule["optima"].values()]):
            assert number(value) in words


def test_the_drawn_optima_and_losses_are_those_of_the_result(study):
    record = json.loads((study / "result.json").read_text())
    figures = drawn((study / "report.html").read_text())
    over_rate, over_loops = (figures[i]["spec"]["data"]["values"] for i in (0, 2))
    for name, rule in record["rules"].items():
        losses = [best["loss"] for best in rule["optima"].values()]
        assert set(losses) <= {row.get("y") for row in over_rate if row.get("shape") == "diamond"}
        assert [row["y"] for row in over_loops if row.get("series") == name] == losses


def test_the_verdict_comes_first_and_provenance_last(study):
    text = (study / "report.html").read_text().partition("<script")[0]
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert titles[0] == "Verdict by rule" and titles[1] == "Loss over learning rate" and titles[-1] == "Provenance"
    assert text.index('class="lead"') < text.index("<h2")
    assert text.count("<figure>") == 6 == text.count("How to read this.") == text.count("The numbers of figure")
    assert "0123456789abcdef0123456789abcdef01234567" in text and text.startswith("<!doctype html>\n<html lang=")


def test_every_figure_is_valid_vega_lite_in_both_readings_and_has_a_table(study):
    for figure in study_figures(study_info(study)).values():
        for spec in (figure.spec(), figure.spec(page=True)):
            alt.Chart.from_dict(spec)
        header, rows = figure.table()
        assert rows and all(len(row) == len(header) for row in rows)
        shown = [mark for mark in figure.marks if mark.said]
        assert len(rows) == len(shown)


def test_a_page_is_small_and_holds_the_drawing_script_once(study):
    text = (study / "report.html").read_text()
    assert len(text.encode()) <= 1.5e6
    assert text.count("window.embed=") == 1


def test_the_page_and_the_figures_are_reproducible(study, tmp_path):
    first = {path.name: path.read_bytes() for path in (study / "figures").iterdir()}
    assert len(first) == 18 and {name.rsplit(".", 1)[1] for name in first} == {"svg", "png", "pdf"}
    write_report(study)
    assert {path.name: path.read_bytes() for path in (study / "figures").iterdir()} == first
    assert page(study_info(study)) == (study / "report.html").read_text()


def test_the_readme_figure_stands_side_by_side_and_stacked(study):
    sys.path.insert(0, str(Path(__file__).parents[2] / "records"))
    from readme_figure import readme_figure

    read = Result.model_validate_json((study / "result.json").read_text())
    wide, stacked = (ElementTree.fromstring(readme_figure(read, narrow)) for narrow in (False, True))
    assert float(wide.get("width")) > 700 > 500 > float(stacked.get("width"))
    assert readme_figure(read) == readme_figure(read)


def test_an_interval_wider_than_the_window_ends_at_its_panel():
    def width(ends):
        record = result(("looped",), LOOPS[:2])
        for best in record["rules"]["looped"]["optima"].values():
            best["lr_interval"] = ends or best["lr_interval"]
        figure = study_figures(StudyInfo(Result.model_validate(clean(record)), ()))["loss-over-rate"]
        return ElementTree.fromstring(render(figure.spec())["svg"]).get("width")

    assert width([2.0**-40, 2.0**20]) == width(None)


def nasty_study(name: str, text: str) -> StudyInfo:
    record = result(("looped",), LOOPS[:2])
    record["rules"] = {name: record["rules"]["looped"] | {"verdict": text, "sentence": text}}
    record["rules"][name]["applied"]["1"][0] |= {"name": text, "why": text, "source": text, "value": text}
    record |= {"sentence": text, "preset": text, "provenance": {text: {text: [text]}}}
    trials = [trial("looped", 2, 2.0**-6, 0.5, seed) for seed in (0, 1)]
    trials = [item | {"cell": item["cell"] | {"rule": name}} for item in trials]
    return StudyInfo(Result.model_validate(clean(record)), tuple(Trial.model_validate(clean(item)) for item in trials))


many = st.lists(nasty, min_size=1, max_size=6).map(" ".join)  # a page is dear: several strings in each


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=many, text=many)
def test_no_string_of_a_study_becomes_markup(name, text, calm_page):
    calm, wild = Reader(calm_page), page(nasty_study(name, text))
    read = Reader(wild)
    assert set(read.tags) <= set(calm.tags) and read.attributes <= calm.attributes
    assert read.tags.count("script") == 3
    wild.encode("utf-8")
    assert len(drawn(wild)) == len(drawn(calm_page))


@pytest.fixture(scope="module")
def calm_page():
    """A page without the drawing script, as all are meanwhile: the parser need not read it forty times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loopscale.report.page.bundle", lambda: "0")
        yield page(nasty_study("calm", "calm"))


@given(nasty)
def test_escaping_round_trips(text):
    assert html.unescape(escape(text)).replace("\r", "\n") == clean(text).replace("\r", "\n")
    assert json.loads(embed_json({"a": text})) == {"a": clean(text)}
    assert not set("<>&") & set(embed_json(text))


@pytest.mark.parametrize("name", ["$a$ <b>", "_hidden", "x" * 200, "%{x}", "'+alert(1)+'", 'a\\"]'])
def test_a_file_draws_any_rule_name_as_text(name):
    made = render(study_figures(nasty_study(name, "text"))["optimum-over-loops"].spec())
    ElementTree.fromstring(made["svg"])
    panels = render(study_figures(nasty_study(name, "text"))["loss-over-rate"].spec())["svg"].decode()
    assert html.escape(name[:10], quote=False) in panels.replace("&quot;", '"')


def test_any_page_can_be_made_of_sections():
    figure = next(iter(study_figures(nasty_study("a", "b")).values()))
    table = Table(("x",), [("<1>",)])
    parts = [
        Section("A", "plain <text>", figure=figure, table=table),
        Section("A", figure=figure),
        Section("B", table=table),
    ]
    read = Reader(text := render_page("T & T", "lead", parts, [("k", "v")]))
    assert "plain <text>" in read.words and "T & T" in read.words and "<1>" in read.words
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "<script" not in render_page("no figures", "lead", [Section("A", "b")], [])


def test_public_names_load_lazily():
    import subprocess
    import sys

    code = "import sys, loopscale.report as r; assert not {'altair', 'vl_convert', 'torch'} & set(sys.modules); dir(r)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(SHAPES) == {"looped", "sqrt", "none"}


def test_one_seed_has_no_interval_and_it_says_so():
    said = result()
    rule = next(iter(said["rules"].values()))
    rule["regret"], rule["regret_interval"] = 0.0826, [0.0826, 0.0826]  # as earlier versions wrote it
    for optimum in rule["optima"].values():
        optimum.update(lr_interval=[optimum["lr"]] * 2, loss_interval=None, n_seeds=1, edge=False)
    study = StudyInfo(Result.model_validate(said), ())
    text = page(study)
    assert "0.0826 <span>no interval: one seed, or no noise known</span>" in text
    assert "[0.0826, 0.0826]" not in text
    assert text.count(">none, one seed</td>") == 6 * len(rule["optima"])
