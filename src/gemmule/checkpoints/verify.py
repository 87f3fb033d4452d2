"""Verifies an export: against its source, and against the program that it was made for."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gemmule.checkpoints import peers
from gemmule.checkpoints.checkpoint import Checkpoint, known
from gemmule.checkpoints.stored_tensor import side_by_side
from gemmule.checkpoints.streamed_forward import streamed_logits
from gemmule.errors import GemmuleError, TokenizerError
from gemmule.model.config import GemmaConfig
from gemmule.model.spm_train import FIRST_TEXT_ID, SPACE
from gemmule.model.tokenizer import Tokenizer

POSITIONS = 256
# Limits of the difference between another program and us on the same file. transformers computes in
# fp32 as we do and differs only by rounding; llama.cpp rounds activations to 16 bits, or to 8 for
# quantized weights. A wrong scale, cap, norm or window costs tenths of a nat.
MAX_KL = {"hf": 1e-5, "gguf": 2e-2}  # nats a token
MIN_TOP1 = {"hf": 0.99, "gguf": 0.95}

Say = Callable[[str], None]


class VerificationError(GemmuleError):
    """An export is wrong; it was removed."""


def check_export(
    source: Checkpoint, export: Checkpoint, text: str, say: Say = lambda _: None
) -> dict[str, Any]:
    """Compares an export with its source, and with the outputs of its reader.

    Args:
        source: the checkpoint that was exported.
        export: the export, reopened.
        text: real text; its first POSITIONS tokens are used, or random ones without a tokenizer.
        say: called with a description of each stage.

    Returns:
        "weights" (see compare_weights); "against_source" (see compare_logits), only if weights
        differ; "reader": the program, its metrics and the number of texts tokenized, or the reason
        why it was skipped. The export's tokenizer, chat template and stop ids must be the source's.

    Raises:
        VerificationError: when the reader cannot read the export or disagrees with us about it.
    """
    tokenizer = known(source.tokenizer_if_any)
    length = min(POSITIONS, source.config.max_position_embeddings)
    if tokenizer is not None:
        _compare_tokenizers(tokenizer, export)
        tokens = tokenizer.encode(text, bos=True)[:length]
    else:
        tokens = random_ids(source.config, length)
    say("comparing weights with the source")
    weights = compare_weights(source, export)
    report: dict[str, Any] = {"positions": len(tokens), "weights": weights}
    reader = peers.installed(export.format)
    if weights["equal"] and reader is None:
        return report | {"reader": {"skipped": _why_not(export.format)}}
    say("computing logits")
    ours = streamed_logits(export, tokens)
    if not weights["equal"]:
        theirs = streamed_logits(source, tokens)
        report["against_source"] = compare_logits(theirs, ours)
        del theirs
    if reader is None:
        return report | {"reader": {"skipped": _why_not(export.format)}}
    say(f"asking {reader}")
    return report | {"reader": _ask_reader(export, reader, tokens, text, ours)}


def random_ids(config: GemmaConfig, length: int) -> list[int]:
    """Ids after <bos> for a model without a tokenizer, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    first = min(FIRST_TEXT_ID, config.vocab_size - 1)
    drawn = torch.randint(first, config.vocab_size, (length - 1,), generator=generator)
    return [Tokenizer.bos_id, *drawn.tolist()]


def _compare_tokenizers(source: Tokenizer, export: Checkpoint) -> None:
    """Raises VerificationError where an export's tokenizer is not that of its source."""
    ours = export.tokenizer
    if ours.fingerprint != source.fingerprint:
        raise VerificationError(f"{export.path}: the tokenizer is not that of the source")
    if set(ours.stop_ids) != set(source.stop_ids):
        raise VerificationError(
            f"{export.path}: the stop ids are {sorted(ours.stop_ids)}, the source's are "
            f"{sorted(source.stop_ids)}"
        )
    templates = (ours.chat_template, ours.named_templates)
    chat = sample_chat(source)
    if templates != (source.chat_template, source.named_templates) or (
        chat and ours.render_chat(chat) != source.render_chat(chat)
    ):
        raise VerificationError(f"{export.path}: the chat template is not that of the source")


def sample_chat(tokenizer: Tokenizer) -> list[dict[str, str]]:
    """A conversation that the chat template accepts; empty if it refuses all of ours."""
    user = {"role": "user", "content": "Who are you?"}
    answer = {"role": "assistant", "content": "A language model."}
    system = {"role": "system", "content": "Be brief."}
    for chat in ([user, answer, user], [system, user], [user]):
        try:
            tokenizer.render_chat(chat)
        except TokenizerError:
            continue
        return chat
    return []


def _ask_reader(
    export: Checkpoint, reader: str, tokens: list[int], text: str, ours: Tensor
) -> dict[str, Any]:
    folder = export.path if export.path.is_dir() else export.path.parent
    tokenizer = known(export.tokenizer_if_any)
    question = peers.Question(tokens) if tokenizer is None else _question(tokens, text, tokenizer)
    try:
        answer = peers.ask(export.format, folder, question)
    except peers.PeerError as e:
        raise VerificationError(str(e)) from None
    metrics = compare_logits(ours, answer.logits_TV)
    if tokenizer is not None:
        _compare_texts(reader, tokenizer, question, answer)
    close = metrics["kl_nats"] <= MAX_KL[export.format]  # False for NaN
    if not close or metrics["top1_agreement"] < MIN_TOP1[export.format]:
        raise VerificationError(
            f"{reader} computes other logits from {export.path} than gemmule: KL "
            f"{metrics['kl_nats']:.2e} nats (at most {MAX_KL[export.format]:g}), top-1 agreement "
            f"{metrics['top1_agreement']:.1%} (at least {MIN_TOP1[export.format]:.0%})"
        )
    return {
        "program": reader,
        **metrics,
        "texts_tokenized_alike": len(question.texts),
        "added_tokens_alike": len(question.marked),
        "chat_alike": answer.chat is not None,
        "stop_ids_alike": tokenizer is not None and answer.stop_ids is not None,
    }


def _question(tokens: list[int], text: str, tokenizer: Tokenizer) -> peers.Question:
    return peers.Question(
        tokens,
        [line for line in text.splitlines() if _plain(line, tokenizer)][:200],
        [f"one {token.content}two{token.content}" for token in tokenizer.added_tokens],
        sample_chat(tokenizer),
    )


def _compare_texts(
    reader: str, tokenizer: Tokenizer, question: peers.Question, answer: peers.Answer
) -> None:
    """Raises VerificationError where the reader's tokenizer, template or stop ids are not ours."""
    for texts, control, theirs in (
        (question.texts, False, answer.ids),
        (question.marked, True, answer.marked),
    ):
        expected = [tokenizer.encode(t, bos=True, control=control) for t in texts]
        _compare_ids(reader, texts, expected, theirs)
    if answer.chat is not None and answer.chat != tokenizer.render_chat(question.chat):
        raise VerificationError(
            f"{reader} renders a conversation as {answer.chat[:12]}, gemmule as "
            f"{tokenizer.render_chat(question.chat)[:12]}"
        )
    if answer.stop_ids is not None and set(answer.stop_ids) != set(tokenizer.stop_ids):
        raise VerificationError(
            f"{reader} stops at {sorted(answer.stop_ids)}, gemmule at {sorted(tokenizer.stop_ids)}"
        )


def _compare_ids(
    reader: str, texts: Sequence[str], expected: list[list[int]], theirs: list[list[int]]
) -> None:
    wrong = [(text, a, b) for text, a, b in zip(texts, expected, theirs, strict=True) if a != b]
    if wrong:
        text, a, b = wrong[0]
        raise VerificationError(
            f"{reader} tokenizes {text!r} as {b[:12]}, gemmule as {a[:12]} ({len(wrong)} of "
            f"{len(texts)} texts differ)"
        )


def _plain(line: str, tokenizer: Tokenizer) -> bool:
    """Whether a line is free of text that other tokenizers read as control tokens or spaces."""
    return SPACE not in line and tokenizer.encode(line) == tokenizer.encode(line, control=True)


def _why_not(format: str) -> str:
    if format not in peers.READERS:
        return f"no other program that reads {format} is on the package index"
    return f"{peers.READERS[format][0]} is not installed"


def compare_weights(source: Checkpoint, export: Checkpoint) -> dict[str, Any]:
    """The differences between the weights of an export and of its source.

    Returns:
        equal: whether all values are equal; largest_difference; relative_error: root of the sum of
        squared differences over the sum of squared values.
    """
    largest = squares = total = 0.0
    for tensor in source.weights():
        for ours, theirs in side_by_side(tensor, export.tensors[tensor.name]):
            common = torch.promote_types(ours.dtype, theirs.dtype)
            a, b = ours.to(common), theirs.to(common)
            total += float(a.float().square().sum())
            if not torch.equal(a, b):
                difference = (a - b).float()
                largest = max(largest, float(difference.abs().max()))
                squares += float(difference.square().sum())
    error = (squares / total) ** 0.5 if total else 0.0
    return {"equal": largest == 0.0, "largest_difference": largest, "relative_error": error}


def compare_logits(expected_TV: Tensor, got_TV: Tensor) -> dict[str, float]:
    """The distance between two models' logits for the same tokens.

    Returns:
        max_logit_difference; top1_agreement: fraction of positions with the same most likely
        token; kl_nats: mean over positions of KL(expected || got).
    """
    largest = agreed = kl = 0.0
    for a_V, b_V in zip(expected_TV, got_TV, strict=True):
        largest = max(largest, float((a_V - b_V).abs().max()))
        agreed += float(a_V.argmax() == b_V.argmax())
        p_V, q_V = a_V.double().log_softmax(-1), b_V.double().log_softmax(-1)
        kl += float((p_V.exp() * (p_V - q_V)).sum())
    T = len(expected_TV)
    return {
        "max_logit_difference": largest,
        "top1_agreement": agreed / T,
        "kl_nats": kl / T,
    }
