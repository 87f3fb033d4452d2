"""Conversations in a format of the model's own: a chat template, as transformers runs it.

A template writes control tokens as text, so the text of messages must not be able to. Control
strings in it are broken by a character that occurs nowhere else (a Unicode noncharacter) before the
template runs; it is taken out when the result has been split into control tokens and text.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from gemmule.errors import TokenizerError

# Of tokens_of the template that Google publishes with Gemma 2 (and 1): SHA-256.
_PUBLISHED = "300b462e7b6993d0df23357cb2b4db67a6cd514d1af1313c503c5117a13f46c1"
_ROLE = re.compile(r"[\w.-]{1,64}")
# Code points that Unicode keeps free for a program's own use.
_NONCHARACTERS = [*map(chr, range(0xFDD0, 0xFDF0))]
_NONCHARACTERS += [chr(plane << 16 | end) for plane in range(17) for end in (0xFFFE, 0xFFFF)]
_MAX_QUOTED = 200


class RenderedChat(NamedTuple):
    """A conversation as text.

    Attributes:
        text: what the template wrote, with guards in control strings that came from messages.
        guards: what each guard stands for, as str.translate takes it.
        produced: (start, end) of the text that the model has to produce, in characters of `text`.
        whole: whether tokens that only overlap with `produced` count too, as in transformers'
            generation blocks.
    """

    text: str
    guards: Mapping[int, str]
    produced: tuple[tuple[int, int], ...] = ()
    whole: bool = False


class ChatTemplate:
    """A template with the control strings that it may write."""

    def __init__(
        self, text: str, source: str, control: Iterable[str], variables: Mapping[str, str]
    ) -> None:
        """Keeps what rendering needs; the template is compiled when it is used.

        Args:
            text: the template, in jinja2's language.
            source: its origin, for error messages.
            control: texts of the control tokens.
            variables: names of special tokens that the template can use, such as bos_token.
        """
        self._text, self._source, self._variables = text, source, dict(variables)
        self._control = sorted(control, key=len, reverse=True)

    def render(
        self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool, mask: bool = False
    ) -> RenderedChat:
        """Renders a conversation.

        Args:
            messages: the messages; each has a role, and content or other fields of plain data.
            generation_prompt: open the model's turn at the end.
            mask: find out which text the model has to produce.

        Raises:
            TokenizerError: for messages or a template that cannot be used.
        """
        plain = [_checked(n, message) for n, message in enumerate(messages)]
        if not plain:
            raise TokenizerError('a conversation needs a message: {"role": "user", …}')
        guard = _Guard(self._control, _strings(plain))
        guarded = [
            {key: value if key == "role" else guard.protect(value) for key, value in m.items()}
            for m in plain
        ]
        text, generated = self._run(guarded, generation_prompt)
        if not mask:
            return RenderedChat(text, guard.table)
        if generated is not None:
            return RenderedChat(text, guard.table, generated, whole=True)
        return RenderedChat(text, guard.table, tuple(self._differences(guarded, text)))

    def _differences(self, messages: list[dict[str, Any]], text: str) -> Iterator[tuple[int, int]]:
        """The model's turns, from how the text grows with each of them."""
        for n, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._run(messages[:n], True)[0] if n else ""
            after = self._run(messages[: n + 1], False)[0]
            if not n or not after.startswith(before) or not text.startswith(after):
                raise TokenizerError(
                    f"the chat template of {self._source} does not show which text of message {n} "
                    "the model has to produce: put {% generation %} and {% endgeneration %} "
                    "around it in the template"
                )
            yield len(before), len(after)

    def _run(
        self, messages: list[dict[str, Any]], generation_prompt: bool
    ) -> tuple[str, tuple[tuple[int, int], ...] | None]:
        """The text, and the template's generation blocks; None if it has none."""
        import jinja2

        from gemmule.model import template_sandbox as sandbox
        from gemmule.model.template_budget import TooLargeError

        variables = {
            **self._variables,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        try:
            template = sandbox.compile_template(self._text)
            rendering = sandbox.run_template(template, variables)
        except jinja2.TemplateSyntaxError as e:
            problem = f"is not valid: line {e.lineno}: {e.message}"
        except sandbox.RefusedError as e:
            problem = f"refuses this conversation: {e.message}"
        except TooLargeError as e:
            problem = f"is refused: {e.message}"
        except RecursionError:
            problem = "is refused: it calls itself without end, or nests too deep"
        except jinja2.TemplateError as e:
            problem = f"fails: {e.message}"
        except Exception as e:  # a template can raise anything that Python's operators raise
            problem = f"fails: {type(e).__name__}: {e}"
        else:
            generated = tuple(rendering.generated) if "endgeneration" in self._text else None
            return "".join(rendering.parts), generated
        raise TokenizerError(f"the chat template of {self._source} {_quoted(problem)}")


def train_mask(
    chat: RenderedChat, ids: Sequence[int], pieces: Sequence[bytes], stop_ids: Sequence[int]
) -> list[int]:
    """Marks the tokens that the model has to produce: 1 for them, 0 for all others.

    In a turn without generation blocks these end with the first stop token.

    Args:
        chat: the conversation, rendered with `mask`.
        ids: its tokens.
        pieces: the bytes of each token, control tokens spelled out.
        stop_ids: ids that end an answer.
    """
    data = chat.text.translate(chat.guards).encode()
    spans = [[len(chat.text[:at].translate(chat.guards).encode()) for at in span]
             for span in chat.produced]  # fmt: skip
    mask, end, open_span = [], 0, -1
    for token, piece in zip(ids, pieces, strict=True):
        start = data.index(piece, end)  # past white space that belongs to a token before or after
        end = start + len(piece)
        if chat.whole:
            mask.append(int(any(start < stop and begin < end for begin, stop in spans)))
            continue
        n = next((n for n, (begin, stop) in enumerate(spans) if begin <= start < stop), -1)
        mask.append(int(n > open_span))
        if token in stop_ids and n >= 0:
            open_span = n  # the rest of this turn is the template's
    return mask


def _quoted(text: str) -> str:
    """Text from a file, in one line that is harmless in a terminal."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown if len(shown) <= _MAX_QUOTED else shown[: _MAX_QUOTED - 1] + "…"


def _checked(n: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as plain data without fields that are None, as transformers hands it on."""
    role = message.get("role")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise TokenizerError(
            f"message {n} has role {role!r:.80}: use system, user, assistant, or another name that "
            "the chat template knows"
        )
    if "content" in message and not isinstance(message["content"], str | list | None):
        raise TokenizerError(
            f"message {n} has {type(message['content']).__name__} content: give text, as in "
            '{"role": "user", "content": "Hello"}'
        )
    plain: dict[str, Any] = _plain(n, {k: v for k, v in message.items() if v is not None})
    return {**plain, "role": "assistant" if role == "model" else role}


def _plain(n: int, value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(n, key): _plain(n, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(n, item) for item in value]
    raise TokenizerError(f"message {n} holds a {type(value).__name__}: give text or plain data")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


class _Guard:
    """Breaks control strings in the text of messages.

    Attributes:
        table: what each guard stands for: the joint between two characters for nothing, a
            substitute for the control string of one character that it replaces.
    """

    def __init__(self, control: Sequence[str], texts: Iterable[str]) -> None:
        used = set().union(*texts)
        free = (c for c in _NONCHARACTERS if c not in used)
        single = [c for c in control if len(c) == 1 and c in used]
        try:
            self._joint = next(free)
            self._substitutes = {ord(c): next(free) for c in single}
        except StopIteration:
            raise TokenizerError(
                "the messages use all of Unicode's noncharacters: leave one of them out"
            ) from None
        self.table = {ord(self._joint): ""}
        self.table |= {ord(guard): chr(c) for c, guard in self._substitutes.items()}
        longer = [c for c in control if len(c) > 1]
        self._pattern = re.compile("|".join(map(re.escape, longer)) or "(?!)")
        self._starts = {c[:size] for c in longer for size in range(1, len(c))}
        self._ends = {c[size:] for c in longer for size in range(1, len(c))}
        self._longest = max(map(len, longer), default=0)

    def protect(self, value: Any) -> Any:
        """The same value with every control string in it broken."""
        if isinstance(value, dict):
            return {self.protect(key): self.protect(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.protect(item) for item in value]
        return self._protect_text(value) if isinstance(value, str) else value

    def _protect_text(self, text: str) -> str:
        text = text.translate(self._substitutes)
        while self._pattern.search(text):  # again, because control strings can overlap
            text = self._pattern.sub(lambda m: m[0][0] + self._joint + m[0][1:], text)
        # Nor may the template complete one that the text begins or ends with. White space at the
        # edges stays there, where the template can trim it.
        core = text.strip()
        sizes = range(1, min(self._longest, len(core) + 1))
        before = self._joint if any(core[:size] in self._ends for size in sizes) else ""
        after = self._joint if any(core[-size:] in self._starts for size in sizes) else ""
        return text.replace(core, before + core + after, 1) if before or after else text


@lru_cache(16)
def is_gemmas(template: str, ours: str) -> bool:
    """Whether a template is the one that Google publishes with Gemma 2, or `ours`.

    White space within tags and the quotes of its texts do not matter.
    """
    return _digest(template) in {_PUBLISHED, _digest(ours)}


def _digest(template: str) -> str | None:
    import jinja2

    from gemmule.model.template_sandbox import MAX_TEMPLATE, tokens_of

    if len(template) > MAX_TEMPLATE:
        return None
    try:
        tokens = repr(tokens_of(template))
    except (jinja2.TemplateSyntaxError, ValueError):  # a number may be too long to read
        return None
    return hashlib.sha256(tokens.encode(errors="surrogatepass")).hexdigest()
