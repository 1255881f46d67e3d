"""`loopscale report STUDY --serve`: the live page of a study on loopback, from the trials on disk as they end."""

from __future__ import annotations

import html
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from loopscale.cli.watching import outcome
from loopscale.errors import UserError

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="refresh" content="3"><style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
padding: 0 1rem; color-scheme: light dark }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .2rem .8rem; text-align: right }}
thead {{ border-bottom: 1px solid }} tbody tr:first-child {{ font-weight: 600 }}</style></head>
<body><h1>{title}</h1><p>{said}</p><table><caption>Trials that ended, best first</caption><thead><tr>{head}</tr></thead>
<tbody>{rows}</tbody></table>{link}</body></html>"""


def live_page(folder: Path) -> str:
    """The page as it is now: every finished trial, best first; it reloads itself every three seconds.

    Text from the records is escaped; nothing outside the folder is read.
    """
    trials = read_trials(folder)
    names = sorted({name for trial in trials for name in _values(trial)})
    columns = ["rule", "loops", *names, "seed", "loss"]
    ranked = sorted(trials, key=lambda t: float("inf") if t.get("loss") is None else t["loss"])
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in columns)
    rows = "".join(f"<tr>{_cells(trial, names)}</tr>" for trial in ranked)
    report = folder / "report.html"
    link = '<p><a href="/report.html">The finished report</a></p>' if report.exists() else ""
    title = html.escape(f"{'Tuning' if (folder / 'tune.json').exists() else 'Study'} {folder.resolve().name}")
    return PAGE.format(title=title, said=html.escape(_said(folder, trials)), head=head, rows=rows, link=link)


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The finished trials of a study or a tuning, its verification included; a file being replaced is left out."""
    found = []
    for kind in ("trials", "verify"):
        for path in sorted((folder / kind).glob("*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(record["cell"], dict):
                    found.append(record)
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return found


def make_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the live page on 127.0.0.1 only; port 0 takes a free one.

    Raises `UserError` when the folder is no study, or the port is taken.
    """
    if not any((folder / name).exists() for name in ("study.json", "tune.json")):
        raise UserError(f"{folder} is no study: it has neither study.json nor tune.json")
    handler = type("Handler", (_Handler,), {"folder": folder})
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as cause:
        raise UserError(f"cannot serve on port {port} ({cause}): name another with --port") from None


class _Handler(BaseHTTPRequestHandler):
    folder: Path

    def do_GET(self) -> None:
        """The live page, the report, the trials as JSON; nothing else."""
        path = self.path.partition("?")[0]
        if path == "/":
            self._send(live_page(self.folder).encode(), "text/html; charset=utf-8")
        elif path == "/trials.json":
            self._send(json.dumps(read_trials(self.folder)).encode(), "application/json")
        elif path == "/report.html" and (self.folder / "report.html").exists():
            self._send((self.folder / "report.html").read_bytes(), "text/html; charset=utf-8")
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


def _values(trial: dict[str, Any]) -> dict[str, Any]:
    cell = trial["cell"]
    return cell.get("values") or {name: cell[name] for name in ("lr", "strength") if name in cell}


def _cells(trial: dict[str, Any], names: list[str]) -> str:
    cell, values = trial["cell"], _values(trial)
    numbers = [f"{values[name]:.4g}" if isinstance(values.get(name), (int, float)) else "" for name in names]
    texts = [str(cell.get("rule", "")), str(cell.get("loops", "")), *numbers, str(cell.get("seed", "")), outcome(trial)]
    return "".join(f"<td>{html.escape(text)}</td>" for text in texts)


def _said(folder: Path, trials: list[dict[str, Any]]) -> str:
    for name in ("plan.json", "result.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            verified = (found.get("verification") or {}).get("sentence", "")
            return f"{found['sentence']} {verified}".strip()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return f"Running: {len(trials)} trials have ended."
