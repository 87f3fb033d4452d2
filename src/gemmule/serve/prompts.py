"""Texts to token ids, without holding up the event loop, and without reading what cannot fit."""

from bisect import bisect
from weakref import WeakKeyDictionary

from gemmule.infer.language_model import LanguageModel
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.api_errors import ApiError
from gemmule.serve.off_loop import off_loop
from gemmule.serve.served_models import ServedModel

_longest_tokens: WeakKeyDictionary[Tokenizer, int] = WeakKeyDictionary()


async def encode(lm: LanguageModel, text: str, *, bos: bool = True) -> list[int]:
    """Encodes a prompt; text never becomes control tokens.

    Raises:
        ApiError: 400 if it is certainly longer than the context.
        MissingTokenizerError: if the model has none.
    """
    tokenizer = lm.tokenizer
    check_size(lm, len(text))
    return await off_loop(len(text), lambda: tokenizer.encode(text, bos=bos))


def check_size(lm: LanguageModel, characters: int, param: str = "prompt") -> None:
    """Refuses a text before it is encoded if it cannot fit, however few tokens it has.

    Args:
        lm: the model.
        characters: length of the text.
        param: name of the field that it is in.

    Raises:
        ApiError: 400.
    """
    context = lm.config.max_position_embeddings
    least = characters // _longest_token(lm.tokenizer)
    if least >= context:
        raise _too_long(f"at least {least}", context, param)


def check_room(served: ServedModel, tokens: int, wanted: int = 1, param: str = "prompt") -> int:
    """Returns the number of tokens that may follow a prompt, in the context and in the cache.

    Args:
        served: the model.
        tokens: length of the prompt.
        wanted: number of tokens that shall follow at least.
        param: name of the field that the prompt is in.

    Raises:
        ApiError: 400 if there is no room for them.
    """
    context = served.lm.config.max_position_embeddings
    if tokens + wanted > context:
        raise _too_long(str(tokens), context, param)
    # The last token of an answer never runs. What is too much for the cache is the engine's to say.
    longest = bisect(range(1, context + 1), False, key=lambda n: not served.engine.fits(n))
    return max(1, min(context, longest + 1) - tokens)


def _too_long(tokens: str, context: int, param: str) -> ApiError:
    return ApiError(
        400,
        f"the prompt has {tokens} tokens; this model's context is {context}, prompt and answer "
        "together: shorten the prompt",
        code="context_length_exceeded",
        param=param,
    )


def _longest_token(tokenizer: Tokenizer) -> int:
    """The largest number of bytes that one token stands for, and so of characters; 1 or more."""
    if tokenizer not in _longest_tokens:
        _longest_tokens[tokenizer] = max(1, int(tokenizer.token_bytes().max()))
    return _longest_tokens[tokenizer]
