"""`loopscale report STUDY --serve`: the live page of a study on loopback, from the trials on disk as they end."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from loopscale.cli.display import shown
from loopscale.errors import UserError
from loopscale.records import ExponentResult, Journal, Plan, Result, Trial, read_record
from loopscale.report import Section, Table, render_page

ROWS = 300  # the best trials that the page lists


class Live:
    """A study or tuning as it lies on disk; each look reads only the trials that ended since the last one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journals = [Journal(folder, name) for name in ("trials", "verify")]
        self._lock = Lock()

    def trials(self) -> list[Trial]:
        """Return the finished trials, a verification's included; raises `UserError` for a damaged record."""
        with self._lock:
            for journal in self._journals:
                journal.read()
            return [trial for journal in self._journals for trial in journal.trials.values()]

    def page(self) -> str:
        """Draw the page as it is now, which reloads itself every three seconds; text from the records is escaped."""
        try:
            trials, damage = self.trials(), ""
        except UserError as cause:
            trials, damage = [], str(cause)
        names = sorted({name for trial in trials for name in trial.cell.shown})
        ranked = sorted(trials, key=lambda trial: trial.height)[:ROWS]
        columns, rows = ("rule", "loops", *names, "seed", "loss"), [shown(trial, names) for trial in ranked]
        caption = "Trials that ended, best first" + (f" (the best {ROWS})" if len(trials) > ROWS else "")
        link = '<p><a href="/report.html">The page of the folder</a></p>' * (self.folder / "report.html").exists()
        title = f"{'Tuning' if (self.folder / 'tune.json').exists() else 'Study'} {self.folder.resolve().name}"
        parts = [Section("Trials", body_html=link, table=Table(columns, rows, caption))]
        return render_page(title, damage or self._said(len(trials)), parts, [], kind="loopscale, live", refresh=3)

    def _said(self, count: int) -> str:
        try:
            if (self.folder / "plan.json").exists():
                plan = read_record(self.folder / "plan.json", Plan)
                return f"{plan.sentence} {plan.verification.sentence if plan.verification else ''}".strip()
            if (self.folder / "result.json").exists() and (self.folder / "exponent.json").exists():
                return read_record(self.folder / "result.json", ExponentResult).sentence
            if (self.folder / "result.json").exists():
                return read_record(self.folder / "result.json", Result).sentence
        except UserError as cause:
            return str(cause)
        return f"Running: {count} trials have ended."


def make_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Make a server of the live page on 127.0.0.1; raises `UserError` for a folder or port that cannot be used."""
    if not any((folder / name).exists() for name in ("study.json", "exponent.json", "tune.json")):
        raise UserError(f"{folder} is not a study: it has no study.json, exponent.json or tune.json")
    handler = type("Handler", (_Handler,), {"live": Live(folder)})
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as cause:
        raise UserError(f"cannot serve on port {port} ({cause}): name another with --port") from None


class _Handler(BaseHTTPRequestHandler):
    live: Live

    def do_GET(self) -> None:
        """Send the live page, the report, the trials as JSON; nothing else, and only to who asked for this machine."""
        path, report = self.path.partition("?")[0], self.live.folder / "report.html"
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(403)  # a page of elsewhere whose name was pointed here
        elif path == "/":
            self._send(self.live.page().encode(), "text/html; charset=utf-8")
        elif path == "/trials.json":
            try:
                found = self.live.trials()
            except UserError as cause:
                self.send_error(500, explain=str(cause))
                return
            trials = [trial.model_dump(mode="json", exclude_unset=True) for trial in found]
            self._send(json.dumps(trials).encode(), "application/json")
        elif path == "/report.html" and report.is_file() and not report.is_symlink():
            self._send(report.read_bytes(), "text/html; charset=utf-8")
        else:
            self.send_error(404)

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr: the page reloads every three seconds."""
