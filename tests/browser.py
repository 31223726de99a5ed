"""Headless Chromium for the tests that look at a page as a person does; they skip, saying so, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Seen:
    """A page, and what went wrong on it or left it.

    Attributes:
        page: to be driven.
        errors: of the console and of scripts.
        requests: addresses that were asked for, but for those of ``data:`` and ``blob:``.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def screenshot(self, path: Path) -> Path:
        """The whole page as a picture, which a person may look at afterwards."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=True)
        assert path.stat().st_size > 5_000  # an empty page is smaller
        return path


@contextmanager
def browser(width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Seen]:
    """A page of a browser of its own."""
    executable = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine; Debian: apt install chromium")
    with sync_playwright() as playwright:
        # Its own sandbox needs rights that a container does not give; the pages are ours.
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        seen = Seen(page)
        page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        try:
            yield seen
        finally:
            chromium.close()
        seen.requests[:] = [url for url in seen.requests if not url.startswith(("data:", "blob:"))]
