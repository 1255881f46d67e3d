"""The live page: trials as they end, escaped, on loopback only, and nothing else of the disk."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from loopscale import UserError
from loopscale.cli.serving import live_page, make_server


def trial(key, loss, **cell):
    return {
        "key": key,
        "cell": {"rule": "looped", "loops": 4, "lr": 0.01, "strength": 1.0, "seed": 0, **cell},
        "loss": loss,
    }


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "<b>study"
    (folder / "trials").mkdir(parents=True)
    (folder / "study.json").write_text("{}")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def test_trials_appear_as_they_end_best_first_and_escaped(study):
    assert "Running: 0 trials have ended" in live_page(study)
    (study / "trials" / "a.json").write_text(json.dumps(trial("a", 2.5)))
    (study / "trials" / "b.json").write_text(json.dumps(trial("b", 2.25, rule="<script>alert(1)</script>")))
    (study / "trials" / "half.json").write_text('{"key": "ha')
    (study / "trials" / "c.json").write_text(json.dumps({**trial("c", None), "diverged": True}))
    page = live_page(study)
    assert page.index("2.2500") < page.index("2.5000") < page.index("diverged")
    assert "<script>" not in page and "<b>study" not in page and "3 trials have ended" in page


def test_only_the_page_the_report_and_the_trials_are_served_on_loopback(study):
    (study / "trials" / "a.json").write_text(json.dumps(trial("a", 2.5)))
    with make_server(study, 0) as server:
        host, port = server.server_address
        assert host == "127.0.0.1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        get = lambda path: urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").read().decode()  # noqa: E731
        assert "2.5000" in get("/") and json.loads(get("/trials.json"))[0]["key"] == "a"
        for path in ("/../secret.txt", "/study.json", "/report.html", "/%2e%2e/secret.txt"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(path)
        with pytest.raises(UserError, match=f"cannot serve on port {port}"):
            make_server(study, port)
        server.shutdown()


def test_a_folder_that_is_no_study_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is no study: it has neither"):
        make_server(tmp_path, 0)
