"""The live page: trials as they end, escaped, on loopback only, and nothing else of the disk."""

import http.client
import json
import threading
import urllib.error
import urllib.request

import pytest

from loopscale import UserError
from loopscale.cli.serving import Live, make_server
from loopscale.records import Journal, Trial


def trial(key, loss, **cell):
    return Trial(
        key=key,
        cell={"rule": "looped", "loops": 4, "lr": 0.01, "strength": 1.0, "seed": 0, **cell},
        loss=loss,
        diverged=loss is None,
    )


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "<b>study"
    folder.mkdir()
    (folder / "study.json").write_text("{}")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def test_trials_appear_as_they_end_best_first_and_escaped(study):
    live, journal = Live(study), Journal(study)
    assert "Running: 0 trials have ended" in live.page()
    journal.append(trial("a", 2.5))
    assert "Running: 1 trials" in live.page()
    journal.append(trial("b", 2.25, rule="<script>alert(1)</script>"))
    journal.append(trial("c", None))
    with journal.path.open("a") as file:
        file.write('{"key": "ha')  # being written
    page = live.page()
    assert page.index("2.2500") < page.index("2.5000") < page.index("diverged")
    assert "<script>" not in page and "<b>study" not in page and "3 trials have ended" in page
    with journal.path.open("a") as file:
        file.write("lf\n")
    assert "trials.jsonl line 4 is damaged" in live.page()


def test_only_the_page_the_report_and_the_trials_are_served_on_loopback(study):
    Journal(study).append(trial("a", 2.5))
    with make_server(study, 0) as server:
        host, port = server.server_address
        assert host == "127.0.0.1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        get = lambda path: urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").read().decode()  # noqa: E731
        assert "2.5000" in get("/") and json.loads(get("/trials.json"))[0]["key"] == "a"
        for path in ("/../secret.txt", "/study.json", "/report.html", "/%2e%2e/secret.txt"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(path)
        asked = http.client.HTTPConnection("127.0.0.1", port)
        asked.request("GET", "/", headers={"Host": f"elsewhere.example:{port}"})
        assert asked.getresponse().status == 403
        with pytest.raises(UserError, match=f"cannot serve on port {port}"):
            make_server(study, port)
        server.shutdown()


def test_damaged_trials_and_links_are_refused_and_the_server_goes_on(study, capfd):
    (study / "report.html").symlink_to(study.parent / "secret.txt")
    with make_server(study, 0) as server:
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (study / "trials.jsonl").write_text("[]\n")
        for path, status in (("trials.json", 500), ("report.html", 404)):
            with pytest.raises(urllib.error.HTTPError, match=str(status)) as answer:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}")
            assert b"secret" not in answer.value.read()
        server.shutdown()
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_is_no_study_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a study: it has no study"):
        make_server(tmp_path, 0)
