"""The page with the real server and a tiny model, whose text is noise."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from chat_page import answers, ask, button, open_chat, text_of, wait_for_end
from served import LiveServer

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
pytestmark = pytest.mark.browser
expect = sync_api.expect


def used_pages(server: LiveServer) -> float:
    """The fraction of the KV cache that running requests hold, from /metrics."""
    with server.client() as client:
        text = client.get("/metrics").text
    values = re.findall(r"^gemmule:kv_cache_usage_perc\S* (\S+)$", text, re.MULTILINE)
    assert values, text
    return sum(map(float, values))


def test_an_answer_streams_and_ends(
    open_context: Callable[..., BrowserContext], live_server: LiveServer
) -> None:
    page = open_chat(open_context(), live_server.url)
    answer = ask(page, "Say anything at all, it is noise anyway.")
    expect(text_of(answer)).not_to_be_empty()
    expect(answer).to_contain_text("tokens/s")


def test_stopping_frees_the_pages(
    open_context: Callable[..., BrowserContext], live_server: LiveServer
) -> None:
    page = open_chat(open_context(), live_server.url)
    ask(page, "Never mind", complete=False)
    if button(page, "Stop answering").is_visible():
        button(page, "Stop answering").click()
    wait_for_end(page)
    page.wait_for_function(
        """async () => {
          const text = await (await fetch("metrics")).text();
          return /^gemmule:num_requests_running\\S* 0(.0)?$/m.test(text);
        }"""
    )
    assert used_pages(live_server) == 0


def test_the_same_seed_gives_the_same_text(
    open_context: Callable[..., BrowserContext], live_server: LiveServer
) -> None:
    page = open_chat(open_context(), live_server.url)
    answer = ask(page, "Repeat yourself")
    button(answer, "Replay with the same seed").click()
    expect(answer).to_contain_text(re.compile("same|equal|identical", re.IGNORECASE))
    expect(answers(page)).to_have_count(1)
