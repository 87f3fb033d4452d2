"""Conversations in Gemma's own turns.

The user's and the model's turns alternate. A system message opens the first user turn, because
Gemma 2 was trained without a system role.
"""

from collections.abc import Callable, Mapping, Sequence

from gemmule.errors import TokenizerError
from gemmule.model.spm_train import END_OF_TURN_ID, START_OF_TURN_ID

_BOS_ID = 2
_ROLES = {"user": "user", "assistant": "model", "model": "model"}


def checked(messages: Sequence[Mapping[str, str]], strict: bool) -> list[tuple[str, str]]:
    """Checks a conversation.

    Args:
        messages: as for Tokenizer.render_chat.
        strict: refuse a system message.

    Returns:
        The turns: "user" or "model", and the trimmed content.

    Raises:
        TokenizerError: for any other shape of conversation.
    """
    turns: list[tuple[str, str]] = []
    system = ""
    for n, message in enumerate(messages):
        role = message.get("role")
        content = message.get("content")
        if not isinstance(content, str):
            raise TokenizerError(
                f"message {n} has {type(content).__name__} content: give text, as in "
                '{"role": "user", "content": "Hello"}'
            )
        if role == "system" and n == 0:
            if strict:
                raise TokenizerError(
                    "Gemma 2 has no system role, and strict refuses one: put the instruction into "
                    "the first user message, or leave strict out to have that done"
                )
            system = content.strip()
            continue
        if role not in _ROLES:
            hint = "only the first message may be a system message" if role == "system" else ""
            raise TokenizerError(
                f"message {n} has role {role!r}: " + (hint or "use system, user or assistant")
            )
        expected = "model" if len(turns) % 2 else "user"
        if _ROLES[role] != expected:
            raise TokenizerError(
                f"message {n} has role {role!r}: roles must alternate user, assistant, user, …"
            )
        content = content.strip()
        if system and not turns:
            content = f"{system}\n\n{content}".strip()
        turns.append((expected, content))
    if not turns:
        raise TokenizerError('a conversation needs a user message: {"role": "user", …}')
    return turns


def check_end(roles: Sequence[str], generation_prompt: bool) -> None:
    """Raises TokenizerError where the model's turn is to be opened after its own turn."""
    if generation_prompt and roles and roles[-1] in {"assistant", "model"}:
        raise TokenizerError(
            "the last message is the assistant's, so there is nothing to answer: end with a "
            "user message, or pass generation_prompt=False"
        )


def render(
    turns: Sequence[tuple[str, str]],
    generation_prompt: bool,
    encode: Callable[[str], list[int]],
    num_bytes: Callable[[int], int],
) -> tuple[list[int], list[int]]:
    """Renders checked turns as token ids.

    Args:
        turns: as `checked` returns them.
        generation_prompt: open the model's turn at the end.
        encode: encodes text, markers in it as text.
        num_bytes: number of bytes of a token of text.

    Returns:
        The ids, and a mask of the same length: 1 for each token that the model has to produce.

    Raises:
        TokenizerError: when the last turn is the model's, and it is to be opened again.
    """
    check_end([role for role, _ in turns], generation_prompt)
    newline = encode("\n")
    ids, mask = [_BOS_ID], [0]
    for role, content in turns:
        header = f"{role}\n"
        turn = encode(header + content)
        trained = int(role == "model")
        header_tokens = _tokens_covering(turn, len(header), num_bytes)
        ids += [START_OF_TURN_ID, *turn, END_OF_TURN_ID, *newline]
        mask += [0] * (1 + header_tokens) + [trained] * (len(turn) - header_tokens + 1)
        mask += [0] * len(newline)
    if generation_prompt:
        ids += [START_OF_TURN_ID, *encode("model\n")]
        mask += [0] * (len(ids) - len(mask))
    return ids, mask


def _tokens_covering(ids: Sequence[int], size: int, num_bytes: Callable[[int], int]) -> int:
    """The number of tokens at the start of `ids` that hold its first `size` bytes."""
    count = 0
    while size > 0:
        size -= num_bytes(ids[count])
        count += 1
    return count
