"""What the engine asks of whoever computes: spans of tokens in, predictions out. Free of torch.

A page holds `PAGE` positions of keys and values, of all local layers or of all global ones; all
pages are of one size and come from one pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, device

    from gemmule.model.config import GemmaConfig

PAGE = 32
MOST_CANDIDATES = 64  # that a runner chooses itself; whoever wants more takes the whole row

Kind = Literal["greedy", "top_k", "logits", "score"]


@dataclass(frozen=True)
class Output:
    """A prediction that is wanted.

    Attributes:
        index: of the token within its span; what follows this token is predicted.
        kind: "greedy": the likeliest id; "top_k": the likeliest `top_k`; "logits": the whole row;
            "score": the log-probability of `target`, and the likeliest id with it.
        top_k: 1 to MOST_CANDIDATES, for "top_k".
        target: an id, for "score".
    """

    index: int
    kind: Kind
    top_k: int = 0
    target: int = -1


@dataclass(frozen=True)
class Span:
    """Successive tokens of one sequence, to be run in one step.

    Attributes:
        tokens: at least one id.
        start: position of the first.
        global_pages: numbers of the pages of positions [32 i, 32 i + 32), i = 0, 1, ... up to the
            last token's.
        local_pages: the same for local layers; -1 where all positions are out of every window.
        outputs: what is wanted, in the order of the tokens.
    """

    tokens: Sequence[int]
    start: int
    global_pages: Sequence[int]
    local_pages: Sequence[int]
    outputs: Sequence[Output]


@dataclass(frozen=True)
class Prediction:
    """What follows a token. Equal logits: the smaller id comes first.

    Attributes:
        ids: the likeliest ids, likeliest first: one for "greedy" and "score", k for "top_k".
        logits: theirs, fp32; for "logits" the whole row [V], and no ids.
        log_z: logarithm of the sum of exp(logits) over the row, for "score".
        target_logit: for "score".
    """

    ids: "Tensor | None" = None
    logits: "Tensor | None" = None
    log_z: float | None = None
    target_logit: float | None = None


class Runner(Protocol):
    """Runs a model over paged caches.

    A native runner promises that a token's prediction has the same bits whatever else is in the
    step, however its sequence was cut into spans, and whichever pages hold it.
    """

    config: "GemmaConfig"
    device: "device"  # where the cache is
    page_bytes: int
    cache_format: str  # of keys and values: "float32", "float16", "bfloat16" or "int8"
    max_step_tokens: int  # most tokens of one step, of all spans together

    def allocate(self, pages: int) -> None:
        """Makes the pool; its contents are undefined, and memory is taken as pages are used."""

    def step(self, spans: Sequence[Span]) -> list[list[Prediction]]:
        """Takes in the spans' tokens; the predictions of each span, in the order of its outputs."""

    def scores(self, spans: Sequence[Span]) -> list[list[tuple[float, bool]]]:
        """As `step` where every output is a "score": log-probability, and whether likeliest."""

    def copy_page(self, source: int, target: int) -> None:
        """What `target` holds from now on is what `source` does."""
