"""The page for everyone: WCAG 2.2 AA by axe-core, the keyboard, screen readers, small screens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from chat_page import answers, ask, box, button, open_chat, text_of, wait_for_end
from scripted_server import HOLD, ScriptedServer

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
axe_playwright = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs the extra browser"
)
pytestmark = pytest.mark.browser
expect = sync_api.expect

WIDE = "supercalifragilistic" * 12
ANSWER = f"""## A heading

Text with `code`, **bold**, a [link](https://example.org), $x^2$ and {WIDE}.

| Column | {WIDE} | C | D | E | F |
|---|--:|---|---|---|---|
| 1 | 2 | 3 | 4 | 5 | 6 |

```python
def long_line():  # a comment, a keyword, a string and a number
    return "{WIDE}", 42, None, True
```

- [x] done
- [ ] to do

> quoted

$$\\sum_{{i=1}}^n a_i = {" + ".join(f"a_{{{i}}}" for i in range(30))}$$
"""
SIZES = {"desktop": (1280, 800), "tablet": (768, 1024), "phone": (360, 740)}


def violations(page: Page) -> list[str]:
    """What axe-core finds, each as "rule: element"."""
    results = axe_playwright.Axe().run(page).response
    return [
        f"{rule['id']}: {node['html'][:200]} {node['any'][:1]}"
        for rule in results["violations"]
        for node in rule["nodes"]
    ]


def sideways(page: Page) -> list[str]:
    """Elements that make the page scroll sideways."""
    return page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] :
          [...document.querySelectorAll("body *")]
            .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
            .map((e) => e.outerHTML.slice(0, 150))"""
    )


@pytest.fixture(params=[(s, c) for s in SIZES for c in ("light", "dark")], ids="-".join)
def any_chat(
    request: pytest.FixtureRequest,
    scripted: ScriptedServer,
    open_context: Callable[..., BrowserContext],
) -> Page:
    """The page in each size and color scheme."""
    size, scheme = request.param
    width, height = SIZES[size]
    context = open_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    return open_chat(context, scripted.url)


def test_no_violations(any_chat: Page, scripted: ScriptedServer) -> None:
    assert violations(any_chat) == []  # empty
    scripted.answer = [ANSWER, HOLD]
    answer = ask(any_chat, f"A question {WIDE}", complete=False)
    expect(answer.locator("table")).to_be_visible()
    assert violations(any_chat) == []  # while it streams
    assert sideways(any_chat) == []
    scripted.release()
    wait_for_end(any_chat)
    assert violations(any_chat) == []
    button(answer, "Token probabilities").click()
    assert violations(any_chat) == []
    assert sideways(any_chat) == []


def test_no_violations_in_panels_and_dialogs(any_chat: Page, scripted: ScriptedServer) -> None:
    page = any_chat
    ask(page, "A question")
    page.keyboard.press("Alt+h")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    show_settings(page)
    assert violations(page) == []
    assert sideways(page) == []
    button(page, "Model card of teacher").click()
    dialog = page.get_by_role("dialog", name="teacher")
    expect(dialog.locator("strong")).to_have_text("bold")
    expect(dialog).not_to_contain_text("license")  # its YAML is for programs
    expect(dialog).to_contain_text("See Sources.")  # a link that would lead nowhere
    assert violations(page) == []
    assert sideways(page) == []
    button(dialog, "Close").click()
    expect(dialog).to_have_count(0)


def test_no_violations_side_by_side(any_chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = [ANSWER]
    button(any_chat, "Two models side by side").click()
    ask(any_chat, "Both?")
    expect(answers(any_chat)).to_have_count(2)
    assert violations(any_chat) == []
    assert sideways(any_chat) == []


def show_settings(page: Page) -> None:
    """Opens the panel of settings where it is not open already."""
    if not page.get_by_label("System prompt").is_visible():
        button(page, "Settings").click()
    expect(page.get_by_label("System prompt")).to_be_visible()


def focused(page: Page) -> dict[str, Any]:
    """Role, name and box of the element with the focus."""
    return page.evaluate(
        """() => {
          const e = document.activeElement;
          const box = e.getBoundingClientRect();
          const style = getComputedStyle(e);
          return {
            tag: e.localName, name: e.getAttribute("aria-label") ?? e.textContent.trim(),
            seen: e === document.body || box.width > 0 && box.height > 0,
            outline: style.outlineStyle !== "none" || style.boxShadow !== "none",
          };
        }"""
    )


def test_everything_by_keyboard(chat: Page, scripted: ScriptedServer) -> None:
    """A conversation without a pointer; the focus is always seen and never lost."""
    scripted.answer = ["A", " b", " c", HOLD]
    expect(box(chat)).to_be_focused()
    chat.keyboard.type("Letters")
    chat.keyboard.press("Shift+Enter")
    chat.keyboard.type("please")
    chat.keyboard.press("Enter")
    expect(text_of(answers(chat))).to_have_text("A b c")
    assert scripted.requests[0]["messages"][0]["content"] == "Letters\nplease"
    scripted.release()
    wait_for_end(chat)
    expect(box(chat)).to_be_focused()
    names = []
    for _ in range(60):
        chat.keyboard.press("Shift+Tab")
        now = focused(chat)
        assert now["seen"], now
        assert now["outline"] or now["tag"] == "body", now
        names.append(now["name"])
        if now["tag"] == "body":
            break
    for name in ("Token probabilities", "Answer again", "Copy message", "Edit and send again",
                 "Model", "New conversation"):  # fmt: skip
        assert name in names, names


def test_tokens_by_keyboard(chat: Page, scripted: ScriptedServer) -> None:
    scripted.answer = ["A", " b", " c"]
    answer = ask(chat, "Letters")
    button(answer, "Token probabilities").focus()
    chat.keyboard.press("Enter")
    strip = answer.locator(".token-strip button")
    strip.first.focus()
    chat.keyboard.press("ArrowRight")
    expect(strip.nth(1)).to_be_focused()
    chat.keyboard.press("Enter")
    scripted.answer = [" d."]
    chat.keyboard.press("Enter")
    expect(text_of(answers(chat))).to_have_text("A other d.")


def test_a_dialog_keeps_the_focus_and_gives_it_back(chat: Page) -> None:
    box(chat).focus()
    chat.keyboard.press("Alt+h")
    dialog = chat.get_by_role("dialog", name="Keyboard shortcuts")
    for _ in range(6):
        chat.keyboard.press("Tab")
        inside = (
            "document.activeElement.closest('dialog') || document.activeElement === document.body"
        )
        assert chat.evaluate(f"Boolean({inside})")
    chat.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(box(chat)).to_be_focused()


def test_an_answer_is_read_out_by_sentences(chat: Page, scripted: ScriptedServer) -> None:
    log = chat.get_by_role("log")
    expect(log).to_have_attribute("aria-live", "off")  # else each token would be read
    region = chat.locator("[role=status][aria-live=polite]")
    scripted.answer = ["The first", " sentence. The", " second", HOLD, " one."]
    ask(chat, "Read", complete=False)
    expect(region).to_contain_text("The first sentence.")
    expect(region).not_to_contain_text("The second")
    scripted.release()
    wait_for_end(chat)
    expect(region).to_contain_text("The second one.")
    expect(region).to_contain_text("Answer complete.")


def test_every_control_has_a_name(chat: Page, scripted: ScriptedServer) -> None:
    ask(chat, "A question")
    show_settings(chat)
    nameless = chat.evaluate(
        """() =>
          [...document.querySelectorAll("a, button, input, meter, select, summary, textarea")]
          .filter((e) => e.checkVisibility() && !(
            e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_text_at_twice_the_size(
    scripted: ScriptedServer, open_context: Callable[..., BrowserContext]
) -> None:
    """Zoomed to 200%, a window of 1280 pixels has room for 640."""
    page = open_chat(open_context(viewport={"width": 640, "height": 400}), scripted.url)
    scripted.answer = [ANSWER]
    ask(page, "Zoomed")
    assert sideways(page) == []
    expect(box(page)).to_be_in_viewport()


def test_without_color_and_motion(
    scripted: ScriptedServer, open_context: Callable[..., BrowserContext]
) -> None:
    context = open_context(forced_colors="active", reduced_motion="reduce")
    page = open_chat(context, scripted.url)
    ask(page, "Contrast")
    assert violations(page) == []
    moving = page.evaluate(
        "document.getAnimations().filter((a) => a.playState === 'running').length"
    )
    assert moving == 0
