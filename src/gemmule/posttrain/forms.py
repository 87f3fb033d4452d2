"""The forms that chat data are published in, as functions from a record to what it holds.

Conversations: "messages" with role and content (OpenAI, TRL), "conversations" with from and value
(ShareGPT), prompt and completion, instruction with input and output (Alpaca, Dolly, Self-Instruct).
Pairs: prompt, chosen and rejected as text or messages; whole conversations that differ in their
end; transcripts with "Human:" and "Assistant:" (Anthropic's HH).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemmule.posttrain.conversations import (
    Conversation,
    Message,
    PreferencePair,
    Prompt,
    Role,
)

_MESSAGES = ("messages", "conversations", "conversation")
_PROMPTS = ("prompt", "question", "instruction", "query")
_INPUTS = ("input", "context")
_ANSWERS = ("completion", "response", "answer", "output")
_ROLES: Mapping[str, Role] = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "model", "gpt", "chatgpt", "bot"), "assistant"),
}
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
# The text that Alpaca's training code put around each instruction, and some data sets kept.
_ALPACA = re.compile(
    r"Below is an instruction that describes a task.*?\n\n"
    r"### Instruction:\n(?P<instruction>.*?)(?:\n\n### Input:\n(?P<input>.*?))?"
    r"\n\n### Response:\s*",
    re.DOTALL,
)


class NotThisFormError(Exception):
    """A record that cannot be used; the message is the reason that is counted."""


def conversations(row: Mapping[str, Any], key: str) -> Iterator[Conversation]:
    """The conversations of a record: one, or one for each instance of an instruction.

    Raises:
        NotThisFormError: when there is none.
    """
    if name := _first(row, _MESSAGES):
        messages = _alternating(_checked_end(_messages(row[name])))
        yield Conversation(messages, key, _rest(row, name))
        return
    prompt = _first(row, _PROMPTS)
    if prompt is None:
        raise NotThisFormError("no messages and no prompt")
    instances = row.get("instances")
    if isinstance(instances, list):
        for n, instance in enumerate(instances):
            together = {**row, **instance} if isinstance(instance, dict) else {}
            yield from conversations(_without(together, "instances"), f"{key}.{n}")
        return
    answer = _first(row, [name for name in _ANSWERS if name != prompt])
    if answer is None:
        raise NotThisFormError("no answer")
    before, used = _prompt(row, prompt)
    messages = _alternating(_checked_end((*before, *_answer(row[answer]))))
    yield Conversation(messages, key, _rest(row, answer, *used))


def pair(row: Mapping[str, Any], key: str) -> PreferencePair:
    """The preference pair of a record.

    Raises:
        NotThisFormError: when there is none.
    """
    if "chosen" not in row or "rejected" not in row:
        raise NotThisFormError("no chosen and rejected answers")
    answers = [_either(row[name]) for name in ("chosen", "rejected")]
    if any(not messages for messages in answers):
        raise NotThisFormError("an empty answer")
    name = _first(row, _PROMPTS)
    used: Sequence[str] = ()
    if name is not None and not any(messages[0].role != "assistant" for messages in answers):
        before, used = _prompt(row, name)
    else:  # each answer is a whole conversation, and what they share is the prompt
        used = () if name is None else (name,)
        before, answers = _shared(*answers)
    chosen, rejected = (_checked_end(messages) for messages in answers)
    for answer in (chosen, rejected):
        _alternating((*before, *answer))
    if not before or before[-1].role != "user":
        raise NotThisFormError("the prompt does not end with a user message")
    if chosen == rejected:
        raise NotThisFormError("chosen and rejected are the same")
    margin, scores = _margin(row)
    rest = _rest(row, "chosen", "rejected", *scores, *used)
    return PreferencePair(before, chosen, rejected, margin, key, rest)


def prompt(row: Mapping[str, Any], key: str) -> Prompt:
    """The prompt of a record: its messages up to the last one of the user.

    Raises:
        NotThisFormError: when there is none.
    """
    if name := _first(row, _MESSAGES):
        messages, used = _messages(row[name]), [name]
    else:
        name = _first(row, _PROMPTS)
        if name is None:
            raise NotThisFormError("no messages and no prompt")
        messages, used = _prompt(row, name)
    while messages and messages[-1].role != "user":
        messages = messages[:-1]
    if not messages:
        raise NotThisFormError("no user message")
    return Prompt(_alternating(messages), key, _rest(row, *used))


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """The fields that were not used, except those without a value."""
    return {k: v for k, v in _without(row, "system", *used).items() if v is not None}


def _prompt(row: Mapping[str, Any], name: str) -> tuple[tuple[Message, ...], list[str]]:
    """The messages of a prompt, and the fields that they are from."""
    value = row[name]
    if isinstance(value, list):
        return _messages(value), [name]
    messages, used = _text_prompt(_text(value)), [name]
    addition = _first(row, _INPUTS)
    if name == "instruction" and addition is not None:
        used.append(addition)
        if _text(row[addition]).strip():
            content = f"{messages[-1].content}\n\n{row[addition]}"
            messages = (*messages[:-1], Message("user", content))
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        messages = (Message("system", system), *messages)
    return messages, used


def _text_prompt(text: str) -> tuple[Message, ...]:
    if match := _ALPACA.fullmatch(text):
        parts = [part for part in match.group("instruction", "input") if part]
        return (Message("user", "\n\n".join(parts)),)
    transcript = _transcript(text)
    if transcript:
        return transcript if transcript[-1].role == "user" else transcript[:-1]
    return (Message("user", text),)


def _answer(value: Any) -> tuple[Message, ...]:
    return _messages(value) if isinstance(value, list) else (Message("assistant", _text(value)),)


def _either(value: Any) -> tuple[Message, ...]:
    """An answer, or a whole conversation as messages or as a transcript."""
    if isinstance(value, str) and (transcript := _transcript(value)):
        return transcript
    return _answer(value)


def _transcript(text: str) -> tuple[Message, ...]:
    r"""The turns of "\n\nHuman: …\n\nAssistant: …"; none if it is another text."""
    first, *parts = _TURN.split(text if text.startswith("\n\n") else "\n\n" + text)
    if first.strip() or not parts:
        return ()
    roles: list[Role] = ["user" if who == "Human" else "assistant" for who in parts[::2]]
    return tuple(
        Message(role, content.strip()) for role, content in zip(roles, parts[1::2], strict=True)
    )


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise NotThisFormError("messages that are not a list of objects")
    return tuple(map(_message, value))


def _message(value: Mapping[str, Any]) -> Message:
    who = value.get("role", value.get("from"))
    if who not in _ROLES:
        raise NotThisFormError(f"a message with role {str(who)[:40]!r}")
    content = value.get("content", value.get("value"))
    if isinstance(content, list):  # parts, of which only text can be used
        content = _parts(content)
    # OpenAI's fine-tuning form has weight 0 for answers that are not to be learned.
    return Message(_ROLES[who], _text(content), value.get("weight") not in (0, False))


def _parts(content: list[Any]) -> str:
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    if len(texts) != len(content) or not all(isinstance(text, str) for text in texts):
        raise NotThisFormError("a message with parts that are not text")
    return "".join(map(str, texts))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NotThisFormError("content that is not text")
    return value


def _alternating(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Messages of user and assistant in turns, after a system message if there is one."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    for n, message in enumerate(turns):
        if message.role != ("user", "assistant")[n % 2]:
            raise NotThisFormError("roles that do not alternate user, assistant, user, …")
    return messages


def _checked_end(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Messages whose last one is an answer with text."""
    if not messages or messages[-1].role != "assistant":
        raise NotThisFormError("does not end with an answer")
    if not messages[-1].content.strip():
        raise NotThisFormError("an empty answer")
    return messages


def _shared(
    one: tuple[Message, ...], other: tuple[Message, ...]
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The messages that two conversations begin with, up to the user's, and the rest of each."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    while count and one[count - 1].role != "user":
        count -= 1
    return one[:count], [one[count:], other[count:]]


def _margin(row: Mapping[str, Any]) -> tuple[float | None, Sequence[str]]:
    """How much better the chosen answer is, and the fields that say so."""
    scores = ("score_chosen", "score_rejected")
    if isinstance(row.get("margin"), int | float):
        return float(row["margin"]), ("margin",)
    if all(isinstance(row.get(name), int | float) for name in scores):
        return float(row[scores[0]]) - float(row[scores[1]]), scores
    return None, ()
