"""The playground in a browser: Python's numbers, no NaN, by keyboard and screen reader, phone to desktop, offline."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browsing import Visit

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "playground"
sys.path.insert(0, str(SOURCE))
pytestmark = pytest.mark.browser
RULES = ["looped", "looped-complete", "sqrt", "none", "depth-mup"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    import build

    return build.build(tmp_path_factory.mktemp("playground"))


@pytest.fixture
def opened(browser, path):
    """(width, scheme) -> visit; at the end nothing was asked for or complained about."""
    visits = []

    def look(width=1280, scheme="light"):
        visits.append(Visit(browser, path, width, scheme))
        return visits[-1].page

    look.visits = visits
    yield look
    for visit in visits:
        visit.page.close()
        visit.is_clean()


def test_the_numbers_are_pythons(opened):
    import maths

    cases = [
        (rule, norm, tied, n, layers, lam)
        for rule in RULES
        for norm in maths.NORMS
        for tied in (True, False)
        for n in (1, 8, 64)
        for layers in (1, 3, 16)
        for lam in (0.125, 1.0, 4.0)
    ]
    script = """cases => cases.map(([r, m, t, n, l, s]) =>
        [residualScale(r, n, l, s), oneStepChange(r, n, l, s), ...streamSizes(r, m, t, n, l, s)])"""
    found = opened().evaluate(script, cases)
    for (rule, norm, tied, n, layers, lam), numbers in zip(cases, found, strict=True):
        ours = [maths.eps(rule, n, layers, lam), maths.change(rule, n, layers, lam)]
        ours += maths.stream(rule, norm, tied, n, layers, lam)
        assert numbers == pytest.approx(ours, rel=1e-9), (rule, norm, tied, n, layers, lam)


def test_the_toy_is_near_the_network(opened):
    """The stream of the toy against a real one with random weights: within a factor of 2 at 64 visits."""
    import maths
    import torch

    import loopscale as ls

    tokens = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))
    for rule in ("looped", "sqrt", "none"):
        real = ls.LoopedTransformer(ls.ModelConfig(rule=rule)).visit_rms(tokens, loops=64)[-1]
        assert 0.5 < maths.stream(rule, "pre", True, 64, 1, 1.0)[-1] / real < 2.0, rule


def test_no_combination_gives_nan(opened):
    script = """() => {
      let count = 0;
      const set = (id, value) => { document.getElementById(id).value = value; };
      for (const rule of Object.keys(RULES)) for (const norm of ["pre", "sandwich", "stream", "absent"])
        for (const tied of [true, false]) for (const n of [0, 3, 6]) for (const l of [1, 7, 16])
        for (const s of [-3, 0, 2]) {
          set("rule", rule); set("norm", norm); set("loops", n); set("layers", l); set("strength", s);
          document.getElementById("tied").checked = tied;
          update(); count += 1;
          const html = document.querySelector(".charts").innerHTML + document.getElementById("said").textContent;
          if (/NaN|Infinity|undefined|too large/.test(html)) return rule + norm + tied + n + l + s;
        }
      return count;
    }"""
    assert opened().evaluate(script) == 7 * 4 * 2 * 3 * 3 * 3  # the pre-norm rules first


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_it_fits_and_does_not_shift(opened, width, scheme):
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator(".chart svg").count() == 4
    shifts = """() => new Promise(done => { new PerformanceObserver(list => done(list.getEntries().reduce(
        (sum, e) => sum + e.value, 0))).observe({type: "layout-shift", buffered: true});
        setTimeout(() => done(0), 300); })"""
    assert page.evaluate(shifts) < 0.02
    assert opened.visits[0].processor_seconds() < 1


def test_by_keyboard_alone(opened):
    page = opened()
    before = page.locator("#said").text_content()
    page.locator("#loops").focus()
    page.keyboard.press("ArrowRight")
    after = page.locator("#said").text_content()
    assert after != before and "After 16 visits" in after
    assert page.locator("#loops").get_attribute("aria-valuetext") == "16"
    order = []
    for _ in range(10):
        order.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        page.keyboard.press("Tab")
    assert order == ["loops", "layers", "strength", "rule", "norm", "tied", "rate", "go", "sweep", "q0"]


def test_the_quiz_asks_before_it_tells(opened):
    page = opened()
    first = page.locator(".question").first
    button = first.get_by_role("button", name="Show the answer")
    assert button.is_disabled() and first.locator(".answer").text_content() == ""
    first.locator("input").nth(0).focus()
    page.keyboard.press("Space")
    assert button.is_enabled()
    button.focus()
    page.keyboard.press("Enter")
    assert first.locator(".answer").text_content().startswith("Not so: more than 30.")
    assert page.locator("#score").text_content() == "0 of 1 right."
    assert button.is_disabled() and first.locator("input").nth(0).is_disabled()


def test_the_answers_follow_from_the_records(opened):
    page = opened()
    assert page.evaluate("QUESTIONS.map(q => q[2])") == [2, 1, 2, 2, 0]
    assert page.evaluate("streamSizes('none', 'pre', true, 64, 1, 1)[64]") > 30
    answer = page.evaluate("QUESTIONS[2][3]()")
    assert "computed, one step" in answer and f"measured, {page.locator('#gap').text_content()} times at 16" in answer


def test_norm_and_sharing_move_the_figures_that_the_page_says(opened):
    page = opened()
    drawn = """() => ["stream", "change", "alignment", "curves"].map(id => document.getElementById(id).innerHTML)"""
    page.select_option("#rule", "sqrt")
    before = page.evaluate(drawn)
    page.select_option("#norm", "absent")
    normless = page.evaluate(drawn)
    assert [a == b for a, b in zip(before, normless, strict=True)] == [False, True, True, True]
    page.locator("#tied").uncheck()
    assert [a == b for a, b in zip(normless, page.evaluate(drawn), strict=True)] == [False, True, False, True]


def test_three_rules_train_side_by_side(opened):
    page = opened(420)
    page.evaluate("document.getElementById('loops').value = 2; update()")
    page.locator("#go").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#training[data-done]")
    said = page.locator("#trained").text_content()
    assert "N = 4, L = 1, strength 1. looped: loss" in said and "after 40 steps; sqrt: loss" in said
    assert page.locator("#training polyline").count() == 3 and page.locator("#stop").is_disabled()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


TRAINED = """
const {training, makeNetwork} = require(process.argv[1]);
const plain = (net) => Object.fromEntries(Object.entries(net).map(([k, w]) => [k, [...w]]));
const shape = JSON.parse(process.argv[2]), run = training(shape), losses = [];
let net;
for (let step = 0; step < 6; step++) { const now = run.next().value; losses.push(now.loss); net = now.net; }
console.log(JSON.stringify({first: plain(makeNetwork(shape.layers, shape.seed)), losses, last: plain(net)}));
"""


@pytest.mark.parametrize(("loops", "layers", "eps"), [(1, 1, 1.0), (8, 2, 0.09), (16, 1, 0.25)])
def test_its_steps_are_pytorchs(loops, layers, eps):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    shape = {"loops": loops, "layers": layers, "eps": eps, "hidden": 2**-6, "outer": 2**-5, "seed": 3}
    command = [node, "-e", TRAINED, SOURCE / "trainer.js", json.dumps(shape)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    losses, last = in_torch(found["first"], shape)
    assert found["losses"] == pytest.approx(losses, rel=1e-4, abs=1e-5)
    for name, weights in last.items():
        assert found["last"][name] == pytest.approx(weights, rel=1e-4, abs=1e-4), name


def in_torch(first, shape):
    """The network of trainer.js and six steps of torch's Adam on it."""
    import torch
    from torch.nn import functional as F

    sizes = {"A": (8, 16), "B": (8, 16), "U": (8, 16), "W1": (32, 16), "W2": (16, 32)}
    net = {k: torch.tensor(w).view(sizes[k.partition(".")[0]]).requires_grad_() for k, w in first.items()}
    hidden = [w for k, w in net.items() if k.startswith("W")]
    outer = [w for k, w in net.items() if not k.startswith("W")]
    groups = [{"params": hidden, "lr": shape["hidden"]}, {"params": outer, "lr": shape["outer"]}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-8)
    a, b = torch.arange(8).repeat_interleave(8), torch.arange(8).repeat(8)
    losses = []
    for _ in range(6):
        x = net["A"][a] + net["B"][b]
        for _visit in range(shape["loops"]):
            for layer in range(shape["layers"]):
                normed = F.rms_norm(x, (16,), eps=1e-6)
                x = x + shape["eps"] * torch.tanh(normed @ net[f"W1.{layer}"].T) @ net[f"W2.{layer}"].T
        loss = F.cross_entropy(F.rms_norm(x, (16,), eps=1e-6) @ net["U"].T, (a + b) % 8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {k: w.detach().flatten().tolist() for k, w in net.items()}


def test_every_control_and_figure_has_a_name(opened):
    page = opened()
    unnamed = """() => [...document.querySelectorAll("input, select, button, svg")].filter(e =>
        !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim())).length"""
    assert page.evaluate(unnamed) == 0
    assert page.evaluate("[...document.querySelectorAll('svg')].every(e => e.getAttribute('aria-label').length > 30)")


def test_contrast_is_at_least_aa():
    style = (SOURCE / "style.css").read_text()
    schemes = re.findall(r":root \{([^}]*)\}", style)
    assert len(schemes) == 2
    for scheme in schemes:
        ink = dict(re.findall(r"--(\w+):(#\w+)", scheme))
        for text in ("ink", "soft", "one", "two", "three", "link"):
            for ground in ("paper", "panel"):
                assert contrast(ink[text], ink[ground]) >= 4.5, (text, ground, scheme)


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(code: str) -> float:
    digits = code[1:] if len(code) == 7 else "".join(2 * c for c in code[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_is_light_and_asks_for_nothing(path):
    text = path.read_text()
    assert len(text.encode()) < 500_000
    assert not re.search(r'(src|href)="https?:', text) and "/*" + "DATA*/" not in text


def test_a_missing_record_names_its_command(monkeypatch, tmp_path):
    import build

    from loopscale.errors import UserError

    monkeypatch.setattr(build, "RECORDS", tmp_path)
    with pytest.raises(UserError, match="loopscale transfer --preset laptop makes it"):
        build.build(tmp_path)
