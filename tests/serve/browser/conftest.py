"""Chromium on the page. Each test ends with a look at what no page may do: see `Watch`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from chat_page import open_chat
from scripted_server import ScriptedServer, running
from watch import Watch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-quic"]
        )
        yield browser
        browser.close()


@pytest.fixture
def watch() -> Watch:
    """What the open pages did that no page may do."""
    return Watch()


@pytest.fixture
def open_context(browser: Browser, watch: Watch) -> Iterator[Callable[..., BrowserContext]]:
    """open_context(**options): an empty profile of the browser, in English, 1280 pixels wide."""
    with ExitStack() as stack:

        def open_context(**options: Any) -> BrowserContext:
            settings = {"viewport": {"width": 1280, "height": 800}, "locale": "en-US"}
            context = browser.new_context(**{**settings, **options})
            context.set_default_timeout(15_000)
            stack.callback(context.close)
            stack.callback(watch.check, context)
            watch.context(context)
            return context

        yield open_context


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """A server whose answers the test writes."""
    with running(ScriptedServer()) as server:
        yield server


@pytest.fixture
def chat(scripted: ScriptedServer, open_context: Callable[..., BrowserContext]) -> Page:
    """The page of the scripted server, with its models loaded."""
    return open_chat(open_context(), scripted.url)
