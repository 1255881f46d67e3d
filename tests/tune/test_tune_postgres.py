"""One tuning on a real PostgreSQL server: two machines (processes with folders of their own), and a lost server."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from loopscale.cli import main

pytest.importorskip("psycopg")
PLACES = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]
INITDB = shutil.which("initdb", path=os.pathsep.join([*PLACES, os.environ["PATH"]]))
pytestmark = pytest.mark.skipif(INITDB is None, reason="no PostgreSQL server here: install the package 'postgresql'")
FILE = Path(__file__).parent / "valley.py"


class Server:
    """A private PostgreSQL in a temporary folder, run by somebody who is not root."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="loopscale-pg-"))
        self.who = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self.who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._call("initdb", "--auth=trust", "--username=tuner", "--no-sync", "--pgdata", str(self.folder / "data"))
        self.start()

    def url(self, database="postgres", user="tuner:secret"):
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self):
        self._control("start", "-o", f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off")

    def stop(self):
        self._control("stop", "-m", "immediate")

    def database(self, name):
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tuner", name)
        return self.url(name)

    def _control(self, *what):
        self._call("pg_ctl", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), *what)

    def _call(self, program, *arguments):
        command = [str(Path(INITDB).parent / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self.who)


@pytest.fixture(scope="module")
def server():
    running = Server()
    yield running
    running.stop()
    shutil.rmtree(running.folder)


def arguments(config, out, url, trials=10):
    place = ["--objective", f"{FILE}:slow", "--target", "loops=16", "--trials", str(trials), "--seeds", "2"]
    return ["tune", str(config), *place, "--workers", "1", "--storage", url, "--out", str(out)]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "small.toml").write_text("[model]\nwidth = 64\nlayers = 1\n[optim]\nlr = 0.0078125\n")
    return tmp_path / "small.toml"


def start(config, out, url):
    command = [sys.executable, "-m", "loopscale", *arguments(config, out, url)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def trials(folder):
    return {path.stem: json.loads(path.read_text()) for path in (folder / "trials").glob("*.json")}


def test_two_machines_work_on_one_tuning_and_agree(server, config, tmp_path):
    url = server.database("shared")
    folders = [tmp_path / "a", tmp_path / "b"]
    processes = [start(config, folder, url) for folder in folders]
    for process in processes:
        said = process.communicate(timeout=200)[1]
        assert process.returncode == 0, said
        assert "secret" not in said
    first, second = (json.loads((folder / "plan.json").read_text()) for folder in folders)
    assert first["proxy"] == second["proxy"] and first["target"] == second["target"]
    assert trials(folders[0]) == trials(folders[1]) and len(trials(folders[0])) >= 10
    runners = {trial["loss"] for trial in trials(folders[0]).values()}
    assert len(runners) == len(trials(folders[0])), "no point was asked for twice"
    third = tmp_path / "c"
    assert main(arguments(config, third, url)) == 0, "a machine that comes late finds all of it done"
    assert trials(third) == trials(folders[0])


@pytest.mark.slow
def test_verification_is_shared_too(server, config, tmp_path, capsys):
    url = server.database("verified")
    for name in ("a", "b"):
        assert main(arguments(config, tmp_path / name, url, trials=4)) == 0
    verify = ["--loops", "4", "--share", "9", "--workers", "1", "--storage", url, "--json"]
    assert main(["verify", str(tmp_path / "a"), *verify]) in (0, 1)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "b"), *verify]) in (0, 1)
    shared = capsys.readouterr()
    assert shared.err == "", "the second machine ran nothing"
    files = [sorted(path.name for path in (tmp_path / name / "verify").iterdir()) for name in ("a", "b")]
    assert files[0] == files[1] and len(files[0]) > 3


@pytest.mark.slow
def test_a_server_that_goes_away_is_one_sentence_and_nothing_is_lost(server, config, tmp_path):
    url, out = server.database("lost"), tmp_path / "t"
    process = start(config, out, url)
    deadline = time.monotonic() + 60
    while len(list((out / "trials").glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    server.stop()
    try:
        said = process.communicate(timeout=60)[1].strip().splitlines()
    finally:
        server.start()
    assert process.returncode == 2 and "Traceback" not in "".join(said)
    assert f"the storage postgresql://127.0.0.1:{server.port}/lost was lost" in said[-1]
    before = {path: path.stat().st_mtime_ns for path in (out / "trials").glob("*.json")}
    assert len(before) >= 3
    assert main(arguments(config, out, url)) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


@pytest.mark.parametrize(
    "url,words",
    [
        ("{server}/no_such_database", 'cannot reach the storage postgresql://127.0.0.1:{port}/no_such_database'),
        ("postgresql://tuner:secret@127.0.0.1:1/x", "cannot reach the storage postgresql://127.0.0.1:1/x"),
        ("nonsense://x", "cannot reach the storage nonsense://x"),
    ],
)  # fmt: skip
def test_a_storage_that_cannot_be_reached_is_one_sentence(server, config, tmp_path, capsys, url, words):
    base = server.url().rpartition("/")[0]
    assert main(arguments(config, tmp_path / "t", url.format(server=base))) == 2
    said = capsys.readouterr().err.strip()
    assert words.format(port=server.port) in said and "\n" not in said and "secret" not in said
    assert not (tmp_path / "t").exists()


def test_a_database_of_something_else_is_one_sentence(server, config, tmp_path, capsys):
    import psycopg

    url = server.database("other")
    with psycopg.connect(url) as connection:
        connection.execute("create table studies (mine text)")
    assert main(arguments(config, tmp_path / "t", url)) == 2
    said = capsys.readouterr().err.strip()
    assert "holds tables of something else" in said and "\n" not in said and not (tmp_path / "t").exists()
