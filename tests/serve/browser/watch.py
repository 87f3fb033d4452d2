"""What no page may do, whatever a test does with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Route

VIOLATIONS = """
globalThis.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@dataclass
class Watch:
    """What went wrong in a browser context besides what a test looks at.

    Attributes:
        dialogs: texts of dialogs of the browser: a sign that code of a model ran.
        elsewhere: requests to anything but loopback; they are stopped.
        errors: uncaught errors, and what the browser wrote to the console as an error.
        expected: parts of errors that the test provokes.
    """

    dialogs: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def context(self, context: BrowserContext) -> None:
        """Watches a context and its pages."""
        context.add_init_script(VIOLATIONS)
        context.route("**/*", self._only_loopback)
        context.on("page", self._page)

    def _only_loopback(self, route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.hostname == "127.0.0.1" or address.scheme in {"blob", "data"}:
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()

    def _page(self, page: Page) -> None:
        def dismiss(dialog: Any) -> None:
            self.dialogs.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", dismiss)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))

    def check(self, context: BrowserContext) -> None:
        """Fails if anything is wrong."""
        violations = [v for page in context.pages for v in page.evaluate("globalThis.violations")]
        assert violations == []
        assert self.dialogs == []
        assert self.elsewhere == []
        unexpected = [e for e in self.errors if not any(part in e for part in self.expected)]
        assert unexpected == []
