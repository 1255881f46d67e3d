"""A page opened in a headless Chromium, with everything that it asked for and complained about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

QUIET = "--no-sandbox --disable-gpu --no-first-run --disable-sync"
QUIET += " --disable-background-networking --disable-component-update"
PATIENCE = 600_000
"""Milliseconds until a test gives up on a browser. It waits for events, and a loaded machine is slow."""


@contextmanager
def launched() -> Iterator[Any]:
    """Launch the Chromium of the system, or the one that $CHROMIUM names; skip the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    place = next((path for name in names if name and (path := shutil.which(name))), None)
    if place is None:
        pytest.skip("no Chromium: install the package 'chromium' or set $CHROMIUM to one")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=QUIET.split(), timeout=PATIENCE)
        yield browser
        browser.close()


class Visit:
    """A page opened at a width; `is_clean` says that it stayed offline and did not complain."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()

    def is_clean(self) -> None:
        """Assert that the page asked for itself alone and said nothing on its console."""
        assert self.said == []
        assert [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))] == []
        assert len([url for url in self.asked if url.startswith("file:")]) == 1

    def fits(self) -> None:
        """Assert that nobody has to scroll sideways."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def processor_seconds(self) -> float:
        """Read the processor time that the page's process took so far; a busy machine adds next to nothing to it."""
        session = self.page.context.new_cdp_session(self.page)
        session.send("Performance.enable")
        metrics = {row["name"]: row["value"] for row in session.send("Performance.getMetrics")["metrics"]}
        return float(metrics["ProcessTime"])
