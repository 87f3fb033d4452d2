"""Conversations on the page, in a browser: asked, stopped, branched, kept, moved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chat_page import (
    answers,
    ask,
    box,
    button,
    open_chat,
    questions,
    reload,
    text_of,
    wait_for_end,
    wait_for_models,
)
from scripted_server import HOLD, ScriptedServer, chunk, running
from watch import Watch

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
pytestmark = pytest.mark.browser
expect = sync_api.expect


def test_an_answer_is_drawn_while_it_comes(chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = ["First **bold** part", HOLD, " and the rest."]
    answer = ask(chat, "Hello?", complete=False)
    expect(text_of(answer)).to_have_text("First bold part")
    expect(answer.locator("strong")).to_have_text("bold")
    expect(button(chat, "Stop answering")).to_be_visible()
    expect(answer.locator(".answer")).to_have_attribute("aria-busy", "true")
    scripted.release()
    wait_for_end(chat)
    expect(text_of(answer)).to_have_text("First bold part and the rest.")
    (request,) = scripted.requests
    assert request["messages"] == [{"role": "user", "content": "Hello?"}]
    assert request["stream"] is True


def test_paragraphs_stand_apart(chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = ["The first.\n\nThe second."]
    first, second = (p.bounding_box() for p in ask(chat, "Two?").locator(".markdown > p").all())
    assert second["y"] - first["y"] - first["height"] > 8


def test_stopping_keeps_the_text(chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = ["Half of it", HOLD, " never seen"]
    answer = ask(chat, "Count", complete=False)
    expect(text_of(answer)).to_have_text("Half of it")
    button(chat, "Stop answering").click()
    wait_for_end(chat)
    expect(text_of(answer)).to_have_text("Half of it")
    reload(chat)
    expect(text_of(answers(chat))).to_have_text("Half of it")
    # What was cut off can be gone on with.
    scripted.answer = [" of the whole."]
    button(answers(chat), "Continue the answer").first.click()
    expect(text_of(answers(chat))).to_have_text("Half of it of the whole.")
    assert scripted.requests[-1]["continue_final_message"] is True
    assert scripted.requests[-1]["messages"][-1] == {"role": "assistant", "content": "Half of it"}


def test_the_context_is_told_after_an_answer_that_broke_off(
    chat: Page, scripted: ScriptedServer, watch: Watch
) -> None:
    watch.expected.append("429")
    ask(chat, "First question")
    expect(chat.locator(".gauge")).to_contain_text("Context 9 of")
    scripted.failure = (429, "the queue is full")
    ask(chat, "Second question")
    expect(chat.get_by_role("group", name="Error")).to_be_visible()
    expect(chat.locator(".gauge")).to_contain_text("Context 9 of")


def test_a_full_context_offers_no_continuation(chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = ["a "] * 505
    scripted.finish = "length"
    ask(chat, "A question")
    expect(chat.locator(".gauge")).to_contain_text("Context 512 of 512")
    expect(answers(chat)).to_contain_text("The context is full.")
    expect(button(answers(chat), "Continue the answer")).to_have_count(1)
    button(answers(chat), "Continue the answer").click()
    expect(chat.locator(".toast")).to_contain_text("this model can write no more here")
    assert len(scripted.requests) == 1


def test_a_reload_keeps_the_conversation(chat: Page, scripted: ScriptedServer) -> None:
    ask(chat, "First question")
    ask(chat, "Second question")
    reload(chat)
    expect(questions(chat)).to_have_count(2)
    expect(text_of(answers(chat)).last).to_have_text("Hello there.")
    ask(chat, "Third question")
    assert len(scripted.requests[-1]["messages"]) == 5


def test_answering_again_keeps_both_versions(chat: Page, scripted: ScriptedServer) -> None:
    answer = ask(chat, "Say something")
    scripted.answer = ["Other."]
    button(answer, "Answer again").click()
    expect(text_of(answers(chat))).to_have_text("Other.")
    button(chat, "Previous version").click()
    expect(text_of(answers(chat))).to_have_text("Hello there.")
    reload(chat)  # which version is shown is kept as well
    expect(text_of(answers(chat))).to_have_text("Hello there.")


def test_an_edited_question_is_a_branch(chat: Page, scripted: ScriptedServer) -> None:
    ask(chat, "One")
    ask(chat, "Two")
    scripted.answer = ["About three."]
    button(questions(chat).first, "Edit and send again").click()
    chat.get_by_role("textbox", name="Your message").fill("Three")
    button(questions(chat).first, "Send").click()
    expect(questions(chat)).to_have_count(1)
    expect(text_of(answers(chat))).to_have_text("About three.")
    assert scripted.requests[-1]["messages"] == [{"role": "user", "content": "Three"}]
    button(questions(chat).first, "Previous version").click()
    expect(questions(chat)).to_have_count(2)


def test_going_on_from_another_token(chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = ["A", " b", " c"]
    answer = ask(chat, "Letters")
    button(answer, "Token probabilities").click()
    answer.get_by_role("button", name=re.compile("^b, |^ b, |^␣b, ")).click()
    scripted.answer = [" d."]
    answer.get_by_role("button", name=re.compile("Go on from this one: .*other")).click()
    expect(text_of(answers(chat))).to_have_text("A other d.")
    assert scripted.requests[-1]["messages"][-1] == {"role": "assistant", "content": "A other"}


def test_two_models_side_by_side(chat: Page, scripted: ScriptedServer) -> None:
    button(chat, "Two models side by side").click()
    box(chat).fill("Both?")
    box(chat).press("Enter")
    expect(answers(chat)).to_have_count(2)
    wait_for_end(chat)
    assert sorted(request["model"] for request in scripted.requests) == ["student", "teacher"]
    assert len({request["seed"] for request in scripted.requests}) == 1


def test_a_character_cut_in_two_arrives_whole(chat: Page, scripted: ScriptedServer) -> None:
    event = chunk("👩‍👩‍👧 é")
    cut = event.index("👩".encode()) + 2
    scripted.answer = ["Here: ", event[:cut], HOLD, event[cut:-1], event[-1:]]
    answer = ask(chat, "Emoji", complete=False)
    expect(text_of(answer)).to_have_text("Here:")
    scripted.release()
    wait_for_end(chat)
    expect(text_of(answer)).to_have_text("Here: 👩‍👩‍👧 é")


def test_a_stream_in_single_bytes(chat: Page, scripted: ScriptedServer) -> None:
    event = chunk("€ 🙂")
    scripted.answer = [event[i : i + 1] for i in range(len(event))]
    expect(text_of(ask(chat, "Bytes"))).to_have_text("€ 🙂")


def test_a_long_prompt_is_waited_for(chat: Page, scripted: ScriptedServer) -> None:
    """No time-out of the page's own: hours pass without a byte, and then the answer comes."""
    chat.clock.install()
    progress = {"total": 400, "cache": 0, "processed": 100}
    event = b"data: " + json.dumps({"choices": [], "prompt_progress": progress}).encode() + b"\n\n"
    scripted.answer = [event, HOLD, "At last."]
    answer = ask(chat, "A very long text", complete=False)
    bar = answer.get_by_role("progressbar", name="Prompt read")
    expect(bar).to_be_visible()
    chat.clock.fast_forward("05:00:00")
    expect(bar).to_be_visible()
    scripted.release()
    expect(text_of(answer)).to_have_text("At last.")


def test_a_prompt_in_the_address_is_not_sent(
    scripted: ScriptedServer, open_context: Callable[..., BrowserContext]
) -> None:
    context = open_context()
    for query in ("?q=Send+this", "?prompt=Send+this", "#q=Send+this"):
        page = open_chat(context, scripted.url + query)
        page.wait_for_load_state("networkidle")
        expect(answers(page)).to_have_count(0)
    assert scripted.requests == []


def test_the_page_asks_for_a_key(
    scripted: ScriptedServer, open_context: Callable[..., BrowserContext], watch: Watch
) -> None:
    watch.expected.append("401")
    scripted.key = "secret-key"
    context = open_context()
    page = context.new_page()
    page.goto(scripted.url)
    dialog = page.get_by_role("dialog")
    for key in ("wrong", "secret-key"):
        dialog.get_by_label("API key").fill(key)
        button(dialog, "Use this key").click()
    expect(dialog).to_have_count(0)
    wait_for_models(page)
    expect(text_of(ask(page, "With the key"))).to_have_text("Hello there.")
    stored = page.evaluate("JSON.stringify(localStorage) + document.cookie")
    assert "secret-key" not in stored  # sessionStorage forgets it with the tab


def test_an_error_is_shown_and_can_be_tried_again(
    chat: Page, scripted: ScriptedServer, watch: Watch
) -> None:
    watch.expected.append("429")
    scripted.failure = (429, "12 requests are waiting already")
    answer = ask(chat, "Busy?")
    expect(answer).to_contain_text("12 requests are waiting already")
    scripted.failure = None
    button(answer, "Try again").click()
    expect(text_of(answers(chat))).to_have_text("Hello there.")


def test_an_error_in_the_stream_is_shown(chat: Page, scripted: ScriptedServer) -> None:
    error = {"message": "out of pages", "type": "server_error", "code": 500}
    scripted.answer = ["Some", b"data: " + json.dumps({"error": error}).encode() + b"\n\n"]
    answer = ask(chat, "Fail")
    expect(answer).to_contain_text("out of pages")
    expect(text_of(answer)).to_have_text("Some")


def test_a_server_that_restarts(open_context: Callable[..., BrowserContext], watch: Watch) -> None:
    watch.expected.append("ERR_")
    server = ScriptedServer(answer=["Before", HOLD])
    with running(server):
        port = int(server.url.rstrip("/").rpartition(":")[2])
        page = open_chat(open_context(), server.url)
        answer = ask(page, "One", complete=False)
        expect(text_of(answer)).to_have_text("Before")
        server.release()
        wait_for_end(page)
    box(page).fill("Two, written while it is away")
    with running(ScriptedServer(answer=["After."]), port):
        box(page).press("Enter")
        expect(answers(page)).to_have_count(2)
        if button(page, "Try again").count():
            button(page, "Try again").click()
        expect(text_of(answers(page).last)).to_have_text("After.")


def test_settings_are_sent(chat: Page, scripted: ScriptedServer) -> None:
    if not chat.get_by_label("System prompt").is_visible():
        button(chat, "Settings").click()
    chat.get_by_label("System prompt").fill("Answer in rhymes.")
    chat.get_by_label("Temperature").fill("0.25")
    chat.get_by_label("Seed").fill("7")
    chat.get_by_label("Max tokens").fill("33")
    ask(chat, "Go")
    request = scripted.requests[-1]
    assert request["messages"][0] == {"role": "system", "content": "Answer in rhymes."}
    assert (request["temperature"], request["seed"], request["max_tokens"]) == (0.25, 7, 33)
    assert "top_p" not in request  # the server's default holds


def test_export_and_import(
    chat: Page, scripted: ScriptedServer, open_context: Callable[..., BrowserContext],
    tmp_path: Path,
) -> None:  # fmt: skip
    scripted.answer = ["An answer with ünïcode 🙂."]
    ask(chat, "Keep this")
    with chat.expect_download() as download:
        button(chat, "Export all").click()
    exported = tmp_path / "chats.json"
    download.value.save_as(exported)
    assert "Keep this" in exported.read_text(encoding="utf-8")
    other = open_chat(open_context(), scripted.url)
    with other.expect_file_chooser() as chooser:
        button(other, "Import").click()
    chooser.value.set_files(exported)
    other.get_by_role("button", name="Keep this", exact=True).click()
    expect(text_of(answers(other))).to_have_text("An answer with ünïcode 🙂.")


def test_speed_and_energy_are_shown(chat: Page, scripted: ScriptedServer) -> None:
    boundary = "package, from RAPL"
    scripted.energy = {"joules": 1.5, "gco2e": 0.0002, "boundary": boundary}
    answer = ask(chat, "Cost?")
    expect(answer).to_contain_text("tokens/s")
    expect(answer).to_contain_text("1.5 J")
    scripted.answer = ["One", " two", " three", HOLD]
    running_answer = ask(chat, "While it runs?", complete=False)
    expect(running_answer).to_contain_text(re.compile(r"[\d.]+ tokens/s"))
    scripted.release()
    wait_for_end(chat)
