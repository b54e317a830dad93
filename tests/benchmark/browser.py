"""A headless Chromium for tests, in which a page must neither complain nor request anything but itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; skips the test where playwright or chromium is not installed."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright, which drives the browser, is not installed"
    )
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium, in which the page is tested, is not installed")
    with sync_api.sync_playwright() as playwright:
        browser: Browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, width: int = 1280, **options: Any) -> Iterator[Page]:
    """The page of a file; fails at the end if it logged to the console, opened a dialog or requested another file."""
    seen: list[str] = []
    with browser.new_context(viewport={"width": width, "height": 900}, **options) as context:
        page = context.new_page()
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: dismiss(dialog, seen))
        page.on("request", lambda request: seen.append(f"request: {request.url[:200]}"))
        page.goto(path.as_uri())
        yield page
        assert seen == [f"request: {path.as_uri()}"]


def dismiss(dialog: Dialog, seen: list[str]) -> None:
    seen.append(f"dialog: {dialog.message}")
    dialog.dismiss()
