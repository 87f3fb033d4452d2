"""What the page keeps and shows again: lists, drafts, files, versions, replays, other tabs."""

from __future__ import annotations

from collections.abc import Callable
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
)
from scripted_server import HOLD, ScriptedServer

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page
    from watch import Watch

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
pytestmark = pytest.mark.browser
expect = sync_api.expect


def titles(page: Page) -> Locator:
    """Titles in the list of conversations."""
    return page.locator(".conversations .title")


def drop(page: Page, *files: tuple[str, list[int]]) -> None:
    """Drops files, each a name and bytes, on the page."""
    page.evaluate(
        """(files) => {
            const dataTransfer = new DataTransfer();
            for (const [name, bytes] of files)
                dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
            for (const type of ["dragenter", "dragover", "drop"]) {
                const options = { bubbles: true, cancelable: true, dataTransfer };
                document.querySelector("main").dispatchEvent(new DragEvent(type, options));
            }
        }""",
        [list(file) for file in files],
    )


def test_conversations_are_searched_renamed_and_deleted(chat: Page) -> None:
    ask(chat, "About résumés")
    button(chat, "New conversation").click()
    ask(chat, "About sponges")
    expect(titles(chat)).to_have_text(["About sponges", "About résumés"])
    search = chat.get_by_role("searchbox", name="Search conversations")
    search.fill("RESUMES there")  # the second word is in the answer
    expect(titles(chat)).to_have_text(["About résumés"])
    search.fill("")
    button(chat, "Rename About sponges").click()
    chat.get_by_role("textbox", name="Name").fill("Porifera")
    button(chat, "Save").click()
    expect(titles(chat).first).to_have_text("Porifera")
    expect(chat.get_by_role("heading", level=1)).to_have_text("Porifera")
    button(chat, "Delete Porifera").click()
    button(chat, "Delete").click()
    expect(titles(chat)).to_have_text(["About résumés"])
    expect(questions(chat)).to_have_count(0)
    reload(chat)
    expect(titles(chat)).to_have_text(["About résumés"])


def test_drafts_belong_to_their_conversation(chat: Page) -> None:
    ask(chat, "First")
    box(chat).fill("Draft of the first")
    button(chat, "New conversation").click()
    expect(box(chat)).to_have_value("")
    box(chat).fill("Draft of a new one")
    titles(chat).first.click()
    expect(box(chat)).to_have_value("Draft of the first")
    reload(chat)
    expect(box(chat)).to_have_value("Draft of the first")
    button(chat, "New conversation").click()
    expect(box(chat)).to_have_value("Draft of a new one")


def test_dropped_text_is_sent_and_other_files_are_refused(
    chat: Page, scripted: ScriptedServer
) -> None:
    drop(chat, ("notes.md", list(b"```\ncode\n```\n")), ("photo.png", [0x89, 0xFF, 0]))
    expect(chat.locator(".chips li")).to_have_count(1)
    expect(chat.locator(".toast")).to_contain_text("photo.png is not a text file")
    ask(chat, "Read it")
    (message,) = scripted.requests[-1]["messages"]
    assert message["content"] == "notes.md:\n````\n```\ncode\n```\n````\n\nRead it"
    expect(chat.locator(".chips li")).to_have_count(0)


def test_a_replay_says_whether_the_text_is_the_same(chat: Page, scripted: ScriptedServer) -> None:
    answer = ask(chat, "Hello?")
    button(answer, "Replay with the same seed").click()
    expect(answer.locator(".replay")).to_contain_text("Identical: the same 12 characters")
    first, second = scripted.requests
    assert first == second
    assert isinstance(first["seed"], int)
    scripted.answer = ["Hello", " you."]
    button(answer, "Replay with the same seed").click()
    expect(answer.locator(".replay")).to_contain_text("Different after 6 characters")
    expect(text_of(answer)).to_have_text("Hello there.")  # only compared


def test_an_answer_that_others_follow_is_not_changed(chat: Page, scripted: ScriptedServer) -> None:
    ask(chat, "First")
    ask(chat, "Second")
    scripted.answer = [" And more."]
    button(answers(chat).first, "Continue the answer").click()
    wait_for_end(chat)
    expect(text_of(answers(chat))).to_have_text(["Hello there. And more."])
    button(answers(chat).first, "Previous version").click()
    expect(text_of(answers(chat))).to_have_text(["Hello there.", "Hello there."])
    expect(button(answers(chat).first, "Next version")).to_be_focused()


def test_a_reload_in_mid_stream_keeps_what_came(chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = ["Half of it", HOLD]
    answer = ask(chat, "Count", complete=False)
    expect(text_of(answer)).to_have_text("Half of it")
    reload(chat)
    expect(text_of(answers(chat))).to_have_text("Half of it")
    expect(answers(chat)).to_contain_text("Interrupted")
    scripted.answer = [" and half"]
    button(answers(chat), "Continue the answer").first.click()
    expect(text_of(answers(chat))).to_have_text("Half of it and half")


def test_another_tab_is_followed(
    open_context: Callable[..., BrowserContext], scripted: ScriptedServer
) -> None:
    context = open_context()
    first = open_chat(context, scripted.url)
    ask(first, "From the first tab")
    second = open_chat(context, first.url)
    expect(questions(second)).to_contain_text("From the first tab")
    ask(second, "From the second tab")
    expect(titles(first)).to_have_count(1)
    first.bring_to_front()
    first.evaluate("dispatchEvent(new Event('focus'))")
    expect(questions(first)).to_have_count(2)


def test_progress_of_the_prompt_and_context_are_shown(chat: Page, scripted: ScriptedServer) -> None:
    progress = b'{"choices": [], "prompt_progress": {"total": 40, "cache": 8, "processed": 24}}'
    scripted.answer = [b"data: " + progress + b"\n\n", HOLD, "Read."]
    answer = ask(chat, "Long prompt", complete=False)
    expect(answer).to_contain_text("Reading the prompt: 24 of 40 tokens, 8 from the cache")
    bar = answer.get_by_role("progressbar", name="Prompt read")
    assert bar.evaluate("bar => bar.value / bar.max") == 0.6
    scripted.release()
    wait_for_end(chat)
    expect(chat.locator(".gauge")).to_contain_text("Context 8 of")


def test_a_key_that_was_not_given_is_asked_for_again(
    scripted: ScriptedServer, open_context: Callable[..., BrowserContext], watch: Watch
) -> None:
    watch.expected.append("401")
    scripted.key = "secret-key"
    page = open_context().new_page()
    page.goto(scripted.url)
    button(page.get_by_role("dialog"), "Cancel").click()
    box(page).fill("Hello?")
    box(page).press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key").fill("secret-key")
    button(dialog, "Use this key").click()
    expect(text_of(answers(page))).to_have_text("Hello there.")


def test_copying_without_the_clipboard_api(
    scripted: ScriptedServer, open_context: Callable[..., BrowserContext]
) -> None:
    context = open_context()
    # As on a page that came over plain http from another machine.
    context.add_init_script("delete Navigator.prototype.clipboard")
    page = open_chat(context, scripted.url)
    answer = ask(page, "Hello?")
    page.evaluate(
        """() => document.addEventListener("copy", () => {
            const { value, selectionStart, selectionEnd } = document.activeElement;
            window.copied = value.slice(selectionStart, selectionEnd);
        })"""
    )
    button(answer, "Copy message").click()
    page.wait_for_function("window.copied")
    assert page.evaluate("window.copied") == "Hello there."
    expect(button(answer, "Copy message")).to_be_focused()


def test_answers_without_markdown(chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = ["def f(x):\n    return **x**"]
    answer = ask(chat, "Code")
    button(chat, "Settings").click()
    chat.get_by_role("checkbox", name="Show answers as markdown").uncheck()
    assert text_of(answer).inner_text() == "def f(x):\n    return **x**"
