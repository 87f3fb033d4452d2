"""A conversation's log-probabilities have the same bits in every batch and with every padding."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses import chunked_head, likelihood
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.posttrain.segments import (
    Segments,
    hidden_states,
    label_log_likelihoods,
    label_loss,
)
from gemmule.runtime import torch_compile
from models import GROUPED, random_model, tiny_config

VOCAB = 700
LENGTHS = (9, 31, 2, 18, 140)


@pytest.fixture(scope="module")
def model() -> Gemma:
    return random_model(tiny_config(GROUPED, vocab_size=VOCAB), seed=2)


def conversation(length: int) -> tuple[Tensor, Tensor]:
    """Tokens, and labels of the last two thirds."""
    g = torch.Generator().manual_seed(length)
    tokens = torch.randint(4, VOCAB, (length,), generator=g)
    labels = torch.cat([tokens[1:], torch.tensor([IGNORED])])
    labels[: length // 3] = IGNORED
    return tokens, labels


def packed(lengths: tuple[int, ...], padding: int = 0) -> Batch:
    """All conversations in one row."""
    tokens, labels = (torch.cat(part) for part in zip(*map(conversation, lengths), strict=True))
    ids = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)])
    pad = (0, padding)
    return Batch(
        torch.nn.functional.pad(tokens, pad)[None],
        torch.nn.functional.pad(labels, pad, value=IGNORED)[None],
        torch.nn.functional.pad(ids, pad)[None],
    )


def padded(lengths: tuple[int, ...], width: int, left: bool = False) -> Batch:
    """One row for each conversation."""
    tokens = torch.zeros(len(lengths), width, dtype=torch.long)
    labels, ids = torch.full_like(tokens, IGNORED), torch.zeros_like(tokens)
    for i, n in enumerate(lengths):
        place = slice(width - n, width) if left else slice(0, n)
        tokens[i, place], labels[i, place] = conversation(n)
        ids[i, place] = 1
    return Batch(tokens, labels, ids)


def log_p(model: Gemma, batch: Batch) -> list[Tensor]:
    return list(label_log_likelihoods(model, Segments.of(batch)))


def test_the_values_are_those_of_a_plain_forward_pass(model: Gemma) -> None:
    for length, values in zip(LENGTHS, log_p(model, packed(LENGTHS)), strict=True):
        tokens, labels = conversation(length)
        whole = model(tokens[None])[0].log_softmax(-1)
        index = (labels != IGNORED).nonzero()[:, 0]
        torch.testing.assert_close(values, whole[index, labels[index]], atol=2e-5, rtol=2e-5)


def test_bits_do_not_depend_on_padding_packing_order_or_company(model: Gemma) -> None:
    alone = {n: log_p(model, packed((n,)))[0] for n in LENGTHS}
    batches = [packed(LENGTHS), packed(LENGTHS, 77), padded(LENGTHS, 140)]
    batches += [padded(LENGTHS, 200), padded(LENGTHS, 163, left=True)]
    for batch in batches:
        for n, values in zip(LENGTHS, log_p(model, batch), strict=True):
            assert torch.equal(values, alone[n])
    for order in itertools.islice(itertools.permutations(LENGTHS), 0, 120, 17):
        for n, values in zip(order, log_p(model, packed(order)), strict=True):
            assert torch.equal(values, alone[n])


def test_bits_with_several_threads(model: Gemma) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = log_p(model, packed((31,)))[0]
        assert torch.equal(log_p(model, packed((140, 9, 31)))[2], alone)
    finally:
        torch.set_num_threads(before)


def test_a_plain_batch_has_other_bits(model: Gemma) -> None:
    """What makes the module necessary; where it no longer fails, the module can go."""

    def plain(batch: Batch) -> Tensor:
        x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        log_p_N = model.head.log_likelihoods(x_BTD.flatten(0, 1), batch.labels_BT.flatten())
        return log_p_N.view(batch.tokens_BT.shape)[0, :9]

    widths = [plain(padded((9,), width)) for width in range(9, 40)]
    assert any(not torch.equal(widths[0], other) for other in widths[1:])


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_blocks_are_compiled_once_and_keep_the_guarantee() -> None:
    model = random_model(tiny_config(GROUPED, vocab_size=VOCAB), seed=2)
    plain = log_p(model, packed(LENGTHS))
    torch_compile.compile_blocks(model.layers)
    torch._dynamo.reset()
    batches = [Segments.of(packed(order)) for order in itertools.permutations(LENGTHS[:4])]
    first = label_log_likelihoods(model, batches[0], compiled=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        values = {}
        for segments in batches:
            for n, part in zip(
                segments.lengths,
                label_log_likelihoods(model, segments, compiled=True),
                strict=True,
            ):
                assert torch.equal(values.setdefault(n, part), part)
    for compiled, exact in zip(first, plain, strict=False):
        torch.testing.assert_close(compiled, exact, atol=1e-4, rtol=1e-4)


def test_compiled_rounding_leaves_the_bits(model: Gemma) -> None:
    segments = Segments.of(packed(LENGTHS))
    plain, rounded = (hidden_states(model, segments, compiled=c) for c in (False, True))
    assert torch.equal(plain, rounded)


def test_the_loss_is_their_sum_and_computes_the_logits_once(
    model: Gemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    plain = chunked_head.raw_logits

    def counting(x_ND: Tensor, *args: Any) -> Any:
        rows.append(len(x_ND))
        return plain(x_ND, *args)

    for module in (chunked_head, likelihood):
        monkeypatch.setattr(module, "raw_logits", counting)
    segments = Segments.of(packed(LENGTHS, 5))
    gradients, values = [], []
    for loss in (
        label_loss(model, segments),
        -sum(part.sum() for part in label_log_likelihoods(model, segments)),
    ):
        model.zero_grad()
        (loss / 7).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        values.append(loss.item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert len(rows) == 3  # once for the loss, twice for the log-likelihoods


def test_the_losss_bits_do_not_depend_on_the_batch(model: Gemma) -> None:
    alone = {n: label_loss(model, Segments.of(packed((n,)))).item() for n in LENGTHS}
    for batch in (packed(LENGTHS), packed(LENGTHS, 77), padded(LENGTHS, 163, left=True)):
        total = torch.zeros(())
        for n in LENGTHS:
            total = total + torch.tensor(alone[n])
        assert label_loss(model, Segments.of(batch)).item() == total.item()


def test_gradients_are_those_of_a_plain_float64_model(model: Gemma) -> None:
    weights = torch.tensor([1.0, -0.5, 2.0, 0.0, 0.3])
    exact = random_model(tiny_config(GROUPED, vocab_size=VOCAB), seed=2).double()
    total = torch.zeros((), dtype=torch.float64)
    for weight, n in zip(weights, LENGTHS, strict=True):
        tokens, labels = conversation(n)
        values = exact(tokens[None])[0].log_softmax(-1)
        index = (labels != IGNORED).nonzero()[:, 0]
        total = total + weight * values[index, labels[index]].sum()
    total.backward()
    model.zero_grad()
    ours = log_p(model, packed(LENGTHS, 5))
    sum(w * part.double().sum() for w, part in zip(weights, ours, strict=True)).backward()
    for name, p in exact.named_parameters():
        grad = dict(model.named_parameters())[name].grad
        assert grad is not None
        assert (grad.double() - p.grad).norm() <= 2e-5 * p.grad.norm(), name
    model.zero_grad()
