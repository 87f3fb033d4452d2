"""From a conversation and its settings to a request for the engine; for all protocols."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from gemmule.errors import GemmuleError, TokenizerError
from gemmule.infer.core.constraint import TokenConstraint
from gemmule.infer.core.request import Request
from gemmule.infer.language_model import LanguageModel
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.api_errors import ApiError
from gemmule.serve.events import Event
from gemmule.serve.messages import ChatMessage, turns
from gemmule.serve.off_loop import off_loop
from gemmule.serve.prompts import check_room, check_size
from gemmule.serve.sampling_fields import SamplingFields
from gemmule.serve.settings import ServeSettings


class AnswerParser(Protocol):
    """Reads the events of one sample: what is a tool call becomes `ToolCallDelta`."""

    def feed(self, event: Event) -> Sequence[Event]:
        """Returns what takes the place of an event."""


class AnswerFormat(Protocol):
    """What an answer must look like: JSON of a schema, a grammar's text, calls of tools.

    Attributes:
        instructions: what the model is told of it, in the system message.
    """

    instructions: str

    def compile(self, tokenizer: Tokenizer) -> "Future[TokenConstraint] | None":
        """Starts to compile the constraint; None: any text will do."""

    def parser(self) -> AnswerParser | None:
        """Returns a new parser for a sample; None: its text stays as it is."""


@dataclass(frozen=True, kw_only=True)
class ChatJob:
    """A chat, ready to run.

    Attributes:
        request: for the engine.
        format: what the answer must look like.
    """

    request: Request
    format: AnswerFormat | None


async def prepare_chat(
    lm: LanguageModel,
    settings: ServeSettings,
    messages: Sequence[ChatMessage],
    fields: SamplingFields,
    *,
    max_tokens: int | None = None,
    max_tokens_param: str = "max_tokens",
    logprobs: int | None = None,
    continue_final: bool = False,
    generation_prompt: bool = True,
    answer_format: AnswerFormat | None = None,
) -> ChatJob:
    """Encodes a conversation, checks its settings, and compiles what constrains the answer.

    Args:
        lm: the model.
        settings: limits of the server.
        messages: the conversation.
        fields: how to sample.
        max_tokens: limit of the answer in tokens; None: as the server's settings say.
        max_tokens_param: name of that limit in the protocol.
        logprobs: number of most likely tokens to return; None: no log-probabilities.
        continue_final: go on from the last message, which is the assistant's.
        generation_prompt: open the model's turn at the end.
        answer_format: what the answer must look like.

    Raises:
        ApiError: 400 for a conversation or a setting that cannot be used, a prompt that is too
            long, or a constraint that does not compile.
        MissingTokenizerError: if the model has no tokenizer.
    """
    instructions = "" if answer_format is None else answer_format.instructions
    prompt = await chat_prompt(
        lm,
        turns(messages, instructions),
        continue_final=continue_final,
        generation_prompt=generation_prompt,
    )
    room = check_room(lm, len(prompt), param="messages")
    params = fields.sampling_params(
        settings, max_tokens=max_tokens, room=room, logprobs=logprobs, param=max_tokens_param
    )
    constraint = None if answer_format is None else answer_format.compile(lm.tokenizer)
    compiled = None if constraint is None else await compiled_constraint(constraint)
    return ChatJob(request=Request(prompt, params, constraint=compiled), format=answer_format)


async def chat_prompt(
    lm: LanguageModel,
    messages: Sequence[dict[str, str]],
    *,
    continue_final: bool = False,
    generation_prompt: bool = True,
) -> list[int]:
    """Renders a conversation as token ids; text of messages never becomes control tokens.

    A final message to go on from is encoded as it is, white space included, after the header of the
    model's turn: as if the model had generated it.

    Raises:
        ApiError: 400 for a conversation that the model's format does not allow, or that is
            certainly longer than the context.
    """
    final = None
    if continue_final:
        if not messages or messages[-1]["role"] != "assistant":
            raise ApiError(
                400,
                "continue_final_message goes on from the last message, which must be the "
                "assistant's",
                param="continue_final_message",
            )
        *messages, final = messages
        generation_prompt = True
    elif generation_prompt and messages and messages[-1]["role"] == "assistant":
        raise ApiError(
            400,
            "the last message is the assistant's, so there is nothing to answer: end with a user "
            "message, or go on from it with continue_final_message",
            param="messages",
        )
    size = sum(len(message["content"]) for message in (*messages, *([final] if final else [])))
    check_size(lm, size, param="messages")
    tokenizer = lm.tokenizer

    def render() -> list[int]:
        ids = tokenizer.render_chat(messages, generation_prompt)
        return ids if final is None else ids + tokenizer.encode(final["content"])

    try:
        return await off_loop(size, render)
    except TokenizerError as e:
        raise ApiError(400, str(e), param="messages") from None


async def compiled_constraint(constraint: "Future[TokenConstraint]") -> TokenConstraint:
    """Waits for a constraint.

    Raises:
        ApiError: 400 if it does not compile.
    """
    try:
        return await asyncio.wrap_future(constraint)
    except GemmuleError as e:
        raise ApiError(400, str(e)) from None
