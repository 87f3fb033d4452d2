"""Long chats stay quick: counted in blocks drawn and nodes changed, not in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chat_page import answers, ask, button, open_chat, questions, text_of, wait_for_end
from scripted_server import HOLD, ScriptedServer

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
pytestmark = pytest.mark.browser
expect = sync_api.expect

MESSAGES = 500
TEXT = """Some **text** with `code`.

- one
- two

```python
x = 1
```

| a | b |
|---|---|
| 1 | 2 |
"""

# Counts changes of nodes in messages: of the last answer, and of all others.
COUNT_CHANGES = """
globalThis.changes = { last: 0, others: 0, frames: 0 };
const last = [...document.querySelectorAll("article")].at(-1);
new MutationObserver((records) => {
  changes.frames += 1;
  for (const { target } of records) {
    const article = (target.nodeType === 1 ? target : target.parentElement)?.closest("article");
    if (article) changes[article === last ? "last" : "others"] += 1;
  }
}).observe(document.querySelector("[role=log]"), {
  childList: true, subtree: true, characterData: true,
});
"""


# The end of the newest answer is what one sees.
IN_SIGHT = """() => {
  const answer = [...document.querySelectorAll(".markdown")].at(-1).getBoundingClientRect();
  const log = document.querySelector("[role=log]").getBoundingClientRect();
  return answer.bottom > log.top && answer.bottom <= log.bottom;
}"""


def wait_for_text(page: Page, text: str) -> None:
    """Waits until the newest answer has the text.

    Not by expect(): while it waits, it looks at the whole page for its report of a failure, which
    takes seconds with 500 messages and keeps the page from drawing.
    """
    page.wait_for_function(
        "(text) => [...document.querySelectorAll('.markdown')].at(-1).textContent.includes(text)",
        arg=text,
    )


def import_long_chat(page: Page, scripted: ScriptedServer, folder: Path) -> None:
    """Makes a conversation of 500 messages out of an exported one of two."""
    scripted.answer = [TEXT]
    ask(page, "Long")
    with page.expect_download() as download:
        button(page, "Export all").click()
    download.value.save_as(folder / "short.json")
    exported = json.loads((folder / "short.json").read_text(encoding="utf-8"))
    (chat,) = exported["conversations"]
    first, second = chat["messages"]
    messages = []
    for i in range(MESSAGES):
        template = first if i % 2 == 0 else second
        parent = messages[-1]["id"] if messages else None
        new = {**template, "id": f"{i:024x}", "parent": parent, "created": template["created"] + i}
        messages.append(new)
    chat.update(messages=messages, id="f" * 24, title="Very long", named=True, selected={})
    (folder / "long.json").write_text(json.dumps(exported), encoding="utf-8")
    with page.expect_file_chooser() as chooser:
        button(page, "Import").click()
    chooser.value.set_files(folder / "long.json")
    page.get_by_role("button", name="Very long", exact=True).click()
    expect(questions(page)).to_have_count(MESSAGES // 2)
    expect(answers(page).first.locator("td")).to_have_count(2)  # the oldest one is drawn as well


def test_a_token_touches_only_its_answer(
    scripted: ScriptedServer, open_context: Callable[..., BrowserContext], tmp_path: Path
) -> None:
    page = open_chat(open_context(), scripted.url)
    import_long_chat(page, scripted, tmp_path)
    expect(answers(page).last).to_be_in_viewport()
    words = [f"word{i} " for i in range(300)]
    scripted.answer = ["Begin ", HOLD, *words, HOLD]
    ask(page, "More", complete=False)
    wait_for_text(page, "Begin")
    page.evaluate(COUNT_CHANGES)
    scripted.release()
    wait_for_text(page, "word299")
    page.wait_for_function(IN_SIGHT)
    changes = page.evaluate("changes")
    assert changes["others"] == 0, changes
    # Text is added to the node that is there: one change a frame, and a few for the figures.
    assert 0 < changes["last"] <= 12 * changes["frames"], changes
    scripted.release()
    wait_for_end(page)


def test_messages_out_of_sight_are_not_laid_out(
    scripted: ScriptedServer, open_context: Callable[..., BrowserContext], tmp_path: Path
) -> None:
    page = open_chat(open_context(), scripted.url)
    import_long_chat(page, scripted, tmp_path)
    skipped = page.evaluate(
        """() => [...document.querySelectorAll("article")].filter(
          (a) => getComputedStyle(a).contentVisibility === "auto"
            && !a.querySelector("p, li")?.checkVisibility({ contentVisibilityAuto: true })
        ).length"""
    )
    assert skipped > 0.9 * MESSAGES


def test_tokens_are_drawn_once_a_frame(chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = ["Start. ", HOLD, *(f"w{i} " for i in range(1000)), HOLD]
    answer = ask(chat, "Fast", complete=False)
    expect(text_of(answer)).to_have_text("Start.")
    chat.evaluate(
        """() => {
          globalThis.counts = { frames: 0, drawings: 0 };
          const tick = () => { counts.frames += 1; requestAnimationFrame(tick); };
          requestAnimationFrame(tick);
          new MutationObserver(() => { counts.drawings += 1; }).observe(
            [...document.querySelectorAll(".markdown")].at(-1),
            { childList: true, subtree: true, characterData: true });
        }"""
    )
    scripted.release()
    expect(text_of(answer)).to_contain_text("w999")
    counts = chat.evaluate("counts")
    assert counts["drawings"] <= counts["frames"] + 1, counts
    scripted.release()
    wait_for_end(chat)


# Turning the wheel scrolls over several frames.
SETTLED = """log => new Promise((done) => {
  let last = log.scrollTop, frames = 0
  const look = () => {
    frames = log.scrollTop === last ? frames + 1 : 0
    last = log.scrollTop
    frames === 20 ? done(last) : requestAnimationFrame(look)
  }
  requestAnimationFrame(look)
})"""


def test_the_view_follows_the_answer_until_one_scrolls_up(
    chat: Page, scripted: ScriptedServer
) -> None:
    scripted.answer = ["Line.\n\n"] * 60
    ask(chat, "First")
    log = chat.get_by_role("log")
    log.evaluate("log => { log.scrollTop = 0 }")
    scripted.answer = [*["Line.\n\n"] * 60, HOLD, *["More.\n\n"] * 60, HOLD]
    ask(chat, "Second", complete=False)
    chat.wait_for_function(IN_SIGHT)  # though one was reading above
    log.hover()
    chat.mouse.wheel(0, -1500)
    chat.wait_for_function(f"() => !({IN_SIGHT})()")
    before = log.evaluate(SETTLED)
    scripted.release()
    wait_for_text(chat, "More.")
    chat.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert log.evaluate("log => log.scrollTop") == pytest.approx(before, abs=2)
    button(chat, "To the latest message").click()
    chat.wait_for_function(IN_SIGHT)
    scripted.release()
    wait_for_end(chat)
