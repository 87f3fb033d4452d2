"""What the engine asks of a runner: chunks of tokens in, parts of the logits out. Free of torch.

A page holds the keys and values of `PAGE` positions, of all local layers or of all global ones.
All pages have the same size and come from one pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, device

    from gemmule.model.config import GemmaConfig

PAGE = 32
MAX_TOP_K = 64  # the most a runner selects itself; beyond that the engine takes the whole row


@dataclass(frozen=True)
class LogitsRequest:
    """Which parts of the logits after one token are needed; any combination may be asked for.

    Attributes:
        index: the token's place within its chunk; its logits predict the token after it.
        top_k: number of largest logits, 0 to MAX_TOP_K.
        all_logits: whether the whole row is needed.
        log_z: whether the logarithm of the softmax's denominator is needed.
        target: id whose logit is needed, or -1.
        mask: ids that the largest logits are chosen from; bit i % 32 of word i / 32 stands for id
            i, and there are words for all ids. None: all ids. The other parts do not depend on it.
    """

    index: int
    top_k: int = 0
    all_logits: bool = False
    log_z: bool = False
    target: int = -1
    mask: "npt.NDArray[np.uint32] | None" = field(default=None, compare=False)


@dataclass(frozen=True)
class ScheduledChunk:
    """Consecutive tokens of one sequence that run in the same step.

    Attributes:
        tokens: ids, at least one.
        start: position of the first token.
        global_pages: page of each block of PAGE positions in global layers, up to the last token's.
        local_pages: the same for local layers; -1 where all positions have left the window.
        logits: requests in the order of the tokens.
        sequence_id: id of the sequence that the tokens belong to.
    """

    tokens: Sequence[int]
    start: int
    global_pages: Sequence[int]
    local_pages: Sequence[int]
    logits: Sequence[LogitsRequest] = ()
    sequence_id: int = -1

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class StepOutput:
    """Answer to one LogitsRequest; a field that was not asked for is None.

    Attributes:
        top_ids: ids of the largest logits, largest first; of equal logits the smaller id first.
            Fewer than asked for if the mask allows fewer.
        top_logits: their logits, fp32.
        logits: the whole row, fp32, [V].
        log_z: logarithm of the sum of exp(logits) over the row. A runner computes it the same way
            whatever else is asked for.
        target_logit: logit of the target.
    """

    top_ids: "Tensor | None" = None
    top_logits: "Tensor | None" = None
    logits: "Tensor | None" = None
    log_z: float | None = None
    target_logit: float | None = None


class Runner(Protocol):
    """Runs a model over paged keys and values.

    The native runner and the batch runner are batch-invariant: the logits after a token have the
    same bits whatever else is in the step, however the sequence was cut into chunks, and whichever
    pages hold it.

    Attributes:
        config: shape of the model.
        device: where the pages are.
        page_bytes: size of a page.
        cache_format: format of keys and values: "float32", "float16", "bfloat16" or "int8".
        max_step_tokens: maximum number of tokens in a step, over all chunks.
    """

    config: "GemmaConfig"
    device: "device"
    page_bytes: int
    cache_format: str
    max_step_tokens: int

    def allocate(self, pages: int) -> None:
        """Makes the pool; its contents are undefined."""

    def step(self, chunks: Sequence[ScheduledChunk]) -> list[list[StepOutput]]:
        """Computes all chunks; returns one output per logits request of each."""

    def scores(self, chunks: Sequence[ScheduledChunk]) -> list[list[tuple[float, bool]]]:
        """Does the same for requests with a target, top_k 1 and log_z.

        Returns:
            For each request the target's log-probability, and whether it is the most likely token.
        """

    def copy_page(self, source: int, target: int) -> None:
        """Copies the contents of one page to another."""

    def weights_changed(self) -> None:
        """Drops every copy of the model's weights, which have changed or moved.

        The pool stays; what the pages hold must not be used any more.
        """
