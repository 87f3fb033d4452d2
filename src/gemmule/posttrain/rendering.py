"""Conversations as token ids, with the mask of what is trained.

A conversation is `<bos>`, turns, and `<eos>` after the last `<end_of_turn>` (Gemma 2 report,
tables 4 and 5). Everything the model has to produce is trained: the content of its turns, the
`<end_of_turn>` after each of them, and the final `<eos>`. A rendered conversation begins with
the ids of its rendered prompt, so that ids can be exchanged between sampling and training, and
text is never tokenized a second time.
"""

import dataclasses
from collections.abc import Sequence

from gemmule.errors import TokenizerError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.conversations import Message


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as tokens.

    Attributes:
        ids: token ids, `<bos>` first.
        trained: for each id, whether the model learns to produce it.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that are trained."""
        return sum(self.trained)


def longest_conversation(seq_len: int) -> int:
    """Number of tokens of the longest conversation in a row of `seq_len` tokens.

    Its last token predicts nothing, and is a label only.
    """
    return seq_len + 1


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a conversation whose last message is the user's, with the model's turn opened.

    Raises:
        TokenizerError: for a conversation that the chat format refuses.
    """
    ids = tokenizer.render_chat([message.to_dict() for message in messages])
    _check_bos(ids, tokenizer)
    return tuple(ids)


def render_conversation(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """A conversation that ends with the model's answer, and which of its tokens are trained.

    Raises:
        TokenizerError: for a conversation that the chat format refuses, that does not end with the
            model's answer, or whose ids do not begin with those of its prompt.
    """
    if not messages or messages[-1].role != "assistant":
        raise TokenizerError(
            "the conversation does not end with the assistant's answer, so there is nothing to "
            "learn at its end: leave out what comes after the last answer"
        )
    ids, mask = tokenizer.render_chat(
        [message.to_dict() for message in messages], generation_prompt=False, return_mask=True
    )
    _check_bos(ids, tokenizer)
    prompt = render_prompt(messages[:-1], tokenizer)
    if tuple(ids[: len(prompt)]) != prompt:
        raise TokenizerError(
            "the chat template writes the prompt of an answer otherwise than the same messages in "
            "a whole conversation, so that training and sampling would see different tokens: use "
            "a template whose generation prompt is how an answer begins"
        )
    length = len(mask) - mask[::-1].index(1) if 1 in mask else 0
    ids, mask = ids[:length], mask[:length]  # the white space after the last turn is not needed
    trained = _without_untrained(mask, messages)
    if tokenizer.chat_template is None:
        ids, trained = [*ids, tokenizer.eos_id], [*trained, messages[-1].trained]
    return Rendered(tuple(ids), tuple(trained))


def _without_untrained(mask: Sequence[int], messages: Sequence[Message]) -> list[bool]:
    """The mask without the answers that are not trained; each run of ones is one answer."""
    learned = [message.trained for message in messages if message.role == "assistant"]
    if all(learned):
        return [bool(value) for value in mask]
    trained, answer = [], -1
    for position, value in enumerate(mask):
        answer += bool(value and (position == 0 or not mask[position - 1]))
        trained.append(bool(value) and learned[answer])
    return trained


def _check_bos(ids: Sequence[int], tokenizer: Tokenizer) -> None:
    count = ids.count(tokenizer.bos_id)
    if count != 1 or ids[0] != tokenizer.bos_id:
        raise TokenizerError(
            f"the chat template writes <bos> {count} times: a conversation has exactly one, at its "
            "start"
        )
