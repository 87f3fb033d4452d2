"""Running the steps of a core on a runner, for the engine with a thread and for the one without."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gemmule.errors import EngineDeadError, first_line
from gemmule.infer.core.cache_size import pages_for
from gemmule.infer.core.engine_core import EngineCore
from gemmule.infer.core.prompt_budget import PromptBudget
from gemmule.infer.core.request import RequestOutput
from gemmule.infer.core.speculative import Speculation
from gemmule.infer.runners.protocol import Runner
from gemmule.model.tokenizer import Tokenizer
from gemmule.runtime.threads import set_up_torch

MAX_FAILED_STEPS = 3  # in a row


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes:
        started: when it was planned, by `time.monotonic`, in seconds.
        seconds: how long it took: planning, running and sampling.
        tokens: tokens of each request that were run over, by the request's id: of its prompt, of
            its output, and draft tokens. Those of a step that failed count as well. Empty if
            outputs came without a step, as for a request that was cancelled before it ran.
    """

    started: float
    seconds: float = 0.0
    tokens: Mapping[int, int] = field(default_factory=dict)


class StepLoop:
    """Runs the steps of a core on a runner, and gives up when they keep failing.

    Attributes:
        core: plans the steps.
        dead: why the engine has given up; None while it works.
        report: what the last step did.
    """

    def __init__(
        self,
        core: EngineCore,
        runner: Runner,
        max_failed_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.core, self._runner, self._clock = core, runner, clock
        self.dead: EngineDeadError | None = None
        self.report = StepReport(clock())
        self._max_failed_steps = max_failed_steps
        self._failed_steps = 0

    def step(self) -> list[RequestOutput]:
        """Runs one step; returns what is new of all requests.

        Raises:
            EngineDeadError: if `max_failed_steps` steps in a row have failed. All requests have
                ended then.
            BaseException: what made the step fail. No request is lost: the next step computes
                again what was not committed.
        """
        if self.dead is not None:
            raise EngineDeadError(str(self.dead)) from self.dead.__cause__
        started, tokens = self._clock(), dict[int, int]()
        try:
            chunks = self.core.plan()
            tokens = self.core.tokens_of_requests(chunks)
            outputs = self.core.apply(chunks, self._runner.step(chunks) if chunks else [])
        except BaseException as error:
            self.core.reset()
            if isinstance(error, Exception):  # Ctrl-C is not a failure
                self._failed_steps += 1
                if self._failed_steps >= self._max_failed_steps:
                    raise self.give_up(error) from error
            raise
        finally:
            self.report = StepReport(started, self._clock() - started, tokens)
        self._failed_steps = 0
        return outputs

    def weights_changed(self) -> None:
        """Drops what was computed with the old weights of the model, and of the draft model."""
        self._runner.weights_changed()
        self.core.weights_changed()

    def give_up(self, error: BaseException) -> EngineDeadError:
        """Ends all requests for good; returns the error that tells why."""
        self.dead = EngineDeadError(
            f"the engine has stopped; steps that failed in a row: {self._failed_steps}, the last "
            f"with {type(error).__name__}: {first_line(error)}"
        )
        self.dead.__cause__ = error
        self.core.abort("error", self.dead)
        return self.dead


def make_core(
    runner: Runner,
    tokenizer: Tokenizer | None,
    speculation: Speculation | None,
    cache_bytes: int | None,
    cache_tokens: int | None,
    *,
    max_running: int | None = None,
    prompt_budget: PromptBudget | None = None,
) -> EngineCore:
    """Allocates a pool of pages and makes a core that uses it."""
    set_up_torch()
    pages = pages_for(runner, cache_bytes, cache_tokens)
    core = EngineCore(
        runner, pages, tokenizer, speculation, max_running=max_running, prompt_budget=prompt_budget
    )
    runner.allocate(pages)
    return core
