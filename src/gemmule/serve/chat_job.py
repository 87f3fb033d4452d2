"""From a conversation and its settings to a request for the engine; for all protocols."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemmule.errors import TokenizerError
from gemmule.infer.core.request import Request
from gemmule.infer.language_model import LanguageModel
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.api_errors import ApiError
from gemmule.serve.grammar.answer_format import StructuredAnswer, instructions_of
from gemmule.serve.messages import ChatMessage, turns
from gemmule.serve.off_loop import off_loop
from gemmule.serve.prompts import check_room, check_size
from gemmule.serve.sampling_fields import SamplingFields
from gemmule.serve.served_models import ServedModel
from gemmule.serve.settings import ServeSettings


@dataclass(frozen=True, kw_only=True)
class ChatJob:
    """A chat, ready to run.

    Attributes:
        request: for the engine.
        format: what the answer must look like; None: any text.
    """

    request: Request
    format: StructuredAnswer | None


async def prepare_chat(
    served: ServedModel,
    settings: ServeSettings,
    messages: Sequence[ChatMessage],
    fields: SamplingFields,
    *,
    max_tokens: int | None = None,
    max_tokens_param: str = "max_tokens",
    logprobs: int | None = None,
    continue_final: bool = False,
    generation_prompt: bool = True,
    answer_format: StructuredAnswer | None = None,
) -> ChatJob:
    """Encodes a conversation, checks its settings, and starts to compile its grammar.

    Args:
        served: the model.
        settings: limits of the server.
        messages: the conversation.
        fields: how to sample.
        max_tokens: limit of the answer in tokens; None: as the server's settings say.
        max_tokens_param: name of that limit in the protocol.
        logprobs: number of most likely tokens to return; None: no log-probabilities.
        continue_final: go on from the last message, which is the assistant's.
        generation_prompt: open the model's turn at the end.
        answer_format: what the answer must look like; None: any text.

    Raises:
        ApiError: 400 for a conversation or a setting that cannot be used, or a prompt that is too
            long.
        GemmuleError: if the grammar is too large, or too many wait to be compiled.
        MissingTokenizerError: if the model has no tokenizer.
    """
    prompt = await chat_prompt(
        served.lm,
        turns(messages, instructions_of(answer_format)),
        continue_final=continue_final,
        generation_prompt=generation_prompt,
    )
    room = check_room(served, len(prompt), param="messages")
    params = fields.sampling_params(
        settings, max_tokens=max_tokens, room=room, logprobs=logprobs, param=max_tokens_param
    )
    constraint = None if answer_format is None else answer_format.constraint()
    return ChatJob(request=Request(prompt, params, constraint=constraint), format=answer_format)


async def chat_prompt(
    lm: LanguageModel,
    messages: Sequence[dict[str, str]],
    *,
    continue_final: bool = False,
    generation_prompt: bool = True,
) -> list[int]:
    """Renders a conversation as token ids; text of messages never becomes control tokens.

    Where a template of the model refuses a system message, its text opens the first user message,
    as with Gemma's own turns: descriptions of tools must have a place.

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
        try:
            ids = tokenizer.render_chat(messages, generation_prompt)
        except TokenizerError as refusal:
            ids = _without_system(tokenizer, messages, generation_prompt, refusal)
        return ids if final is None else ids + tokenizer.encode(final["content"])

    try:
        return await off_loop(size, render)
    except TokenizerError as e:
        raise ApiError(400, str(e), param="messages") from None


def _without_system(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, str]],
    generation_prompt: bool,
    refusal: TokenizerError,
) -> list[int]:
    """Renders a conversation that was refused with its system message in the first user message.

    Raises:
        TokenizerError: the refusal, if that does not help.
    """
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        raise refusal
    first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    try:
        return tokenizer.render_chat([first, *messages[2:]], generation_prompt)
    except TokenizerError:
        raise refusal from None
