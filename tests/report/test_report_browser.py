"""The pages in a real browser: drawn, offline, readable on a phone, usable by keyboard, and inert to nasty names."""

from __future__ import annotations

import pytest
from browsing import Visit
from made_study import write_study

from loopscale.report import write_report

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_study_page_draws_every_figure(browser, study, width, scheme):
    with Visit(browser, study / "report.html", width, scheme) as visit:
        assert visit.page.locator(".chart svg.marks").count() == 6
        assert visit.page.locator(".chart svg .mark-line path").count() > 30
        assert visit.page.locator(".vega-actions, .modebar").count() == 0
        visit.fits()
        visit.is_clean()


def test_the_run_page_draws_every_figure(browser, run_folder):
    with Visit(browser, run_folder / "report.html", 390) as visit:
        assert visit.page.locator(".chart").count() == 5
        visit.fits()
        visit.is_clean()


def test_hovering_and_arrow_keys_show_the_numbers(browser, study):
    with Visit(browser, study / "report.html") as visit:
        page = visit.page
        page.locator("#loss-at-the-optimum").scroll_into_view_if_needed()
        page.locator("#loss-at-the-optimum svg .mark-symbol path").first.hover(force=True)
        page.wait_for_selector("#tip:not([hidden])")
        assert "loss 2.2870" in page.locator("#tip").text_content()
        page.locator("#loss-over-learning-rate .chart").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#said").text_content().startswith("rule looped, N 1, what tried, rate 2^-9")
        page.keyboard.press("ArrowRight")
        assert "rate 2^-8" in page.locator("#said").text_content()
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden() and page.locator("#said").text_content() == ""
        visit.is_clean()


def test_a_legend_button_hides_its_lines(browser, study):
    with Visit(browser, study / "report.html") as visit:
        count = "document.querySelectorAll('#loss-over-learning-rate svg .mark-line path').length"
        before = visit.page.evaluate(count)
        button = visit.page.get_by_role("button", name="N = 16").first
        button.focus()
        visit.page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "false"
        visit.page.wait_for_function(f"{count} < {before}")
        visit.is_clean()


def test_a_nasty_rule_name_shows_as_text(browser, tmp_path):
    name = "<script>document.title='owned'</script><i>%{x}&amp;"
    folder = write_study(tmp_path / "nasty", ("looped", name), loops=(1, 2))
    with Visit(browser, write_report(folder)) as visit:
        page = visit.page
        assert "owned" not in page.title()
        assert page.locator(".card h3").nth(1).text_content() == name
        shown = " ".join(page.locator("#loss-over-learning-rate svg text").all_text_contents())
        assert "<script>document.title=" in shown
        page.locator("#the-optimum-over-loops").scroll_into_view_if_needed()
        page.locator("#the-optimum-over-loops .chart").focus()
        for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
        assert "<script>document.title=" in page.locator("#said").text_content()
        visit.is_clean()
