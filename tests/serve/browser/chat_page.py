"""What a person does on the page, in its own words: by the names of buttons and fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page


def open_chat(context: BrowserContext, url: str) -> Page:
    """Opens the page and waits until it can be used."""
    page = context.new_page()
    page.goto(url)
    wait_for_models(page)
    return page


def reload(page: Page) -> None:
    """Reloads the page and waits until it can be used."""
    page.reload()
    wait_for_models(page)


def wait_for_models(page: Page) -> None:
    """Waits until the page knows the server's models; before, it sends nothing."""
    page.get_by_role("combobox", name="Model").locator("option").first.wait_for(state="attached")


def box(page: Page) -> Locator:
    """The field that messages are written in."""
    return page.get_by_role("textbox", name="Message", exact=True)


def button(within: Page | Locator, name: str) -> Locator:
    """A button by its name."""
    return within.get_by_role("button", name=name, exact=True)


def ask(page: Page, text: str, complete: bool = True) -> Locator:
    """Sends a message; returns the answer, by default when it is complete."""
    count = answers(page).count()
    box(page).fill(text)
    box(page).press("Enter")
    answer = answers(page).nth(count)
    answer.wait_for()
    if complete:
        wait_for_end(page)
    return answer


def wait_for_end(page: Page) -> None:
    """Waits until no answer is being made."""
    page.locator(".answer[aria-busy=false]").last.wait_for()
    button(page, "Send").wait_for()


def answers(page: Page) -> Locator:
    """Answers that are shown."""
    return page.locator("article.assistant")


def text_of(answer: Locator) -> Locator:
    """The text of an answer, as drawn from its markdown."""
    return answer.locator(".markdown")


def questions(page: Page) -> Locator:
    """The user's messages that are shown."""
    return page.locator("article.user")
