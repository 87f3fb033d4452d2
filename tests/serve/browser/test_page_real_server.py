"""The page with the real server and a tiny model, whose text is noise."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from chat_page import answers, ask, button, open_chat, text_of, wait_for_end
from served import LiveServer

from gemmule.infer.core.request import RequestOutput
from gemmule.infer.step_loop import StepLoop

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
pytestmark = pytest.mark.browser
expect = sync_api.expect


def gauge(server: LiveServer, name: str) -> float:
    """The value of a metric, as the page's live figures read it."""
    with server.client() as client:
        text = client.get("/metrics").text
    (value,) = re.findall(rf"^gemmule:{name}\S* (\S+)$", text, re.MULTILINE)
    return float(value)


def use_seed(page: Page, seed: int) -> None:
    """Has all answers drawn with a seed: some of a tiny model's answers are empty."""
    if not page.get_by_label("Seed").is_visible():
        button(page, "Settings").click()
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_label("Seed").press("Tab")


def test_an_answer_streams_and_ends(
    live_server: LiveServer, open_context: Callable[..., BrowserContext]
) -> None:
    page = open_chat(open_context(), live_server.url)
    use_seed(page, 7)
    answer = ask(page, "Say anything at all, it is noise anyway.")
    expect(text_of(answer)).not_to_be_empty()
    expect(answer).to_contain_text("tokens/s")


def test_stopping_frees_the_pages(
    live_server: LiveServer,
    open_context: Callable[..., BrowserContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = StepLoop.step

    def slow_step(self: StepLoop) -> list[RequestOutput]:
        time.sleep(0.1)  # else the tiny model has ended before anyone could stop it
        return step(self)

    monkeypatch.setattr(StepLoop, "step", slow_step)
    page = open_chat(open_context(), live_server.url)
    use_seed(page, 7)
    answer = ask(page, "Never mind", complete=False)
    expect(text_of(answer)).not_to_be_empty()
    assert gauge(live_server, "num_requests_running") == 1
    assert gauge(live_server, "kv_cache_usage_perc") > 0
    button(page, "Stop answering").click()
    wait_for_end(page)
    for _ in range(500):
        if gauge(live_server, "num_requests_running") == 0:
            break
        time.sleep(0.01)
    assert gauge(live_server, "kv_cache_usage_perc") == 0
    assert gauge(live_server, "generation_tokens_total") < 100  # of the 200 and more that fit


def test_the_same_seed_gives_the_same_text(
    live_server: LiveServer, open_context: Callable[..., BrowserContext]
) -> None:
    page = open_chat(open_context(), live_server.url)
    answer = ask(page, "Repeat yourself")
    button(answer, "Replay with the same seed").click()
    expect(answer).to_contain_text(re.compile("same|equal|identical", re.IGNORECASE))
    expect(answers(page)).to_have_count(1)
