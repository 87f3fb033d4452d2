"""Compiles grammars of a model in threads of its own, and keeps those that were used last."""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from gemmule.errors import ConfigError, EngineClosedError, QueueFullError
from gemmule.infer.core.constraint import TokenConstraint
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.grammar.constraint import GrammarConstraint
from gemmule.serve.grammar.limits import GrammarLimits
from gemmule.serve.grammar.spec import GrammarSpec, check_size, short_reason
from gemmule.serve.grammar.trial import TrialProcess
from gemmule.serve.grammar.vocabulary import GrammarVocabulary


class GrammarCompiler:
    """Makes constraints from grammars; all methods may be called from any thread."""

    def __init__(self, tokenizer: Tokenizer, limits: GrammarLimits | None = None) -> None:
        """Reads the vocabulary: see GrammarVocabulary.

        Args:
            tokenizer: the model's.
            limits: what grammars may cost; None: the defaults.

        Raises:
            MissingExtraError: if llguidance is not installed.
        """
        self.limits = limits or GrammarLimits()
        self._vocabulary = GrammarVocabulary(tokenizer)
        self._threads = ThreadPoolExecutor(self.limits.workers, "gemmule-grammar")
        self._own = threading.local()  # each thread has a process to try grammars in
        self._lock = threading.Lock()
        # Guarded by the lock; the grammar that was used last comes last.
        self._compiled: OrderedDict[GrammarSpec, Future[GrammarConstraint]] = OrderedDict()
        self._trials: list[TrialProcess] = []
        self._closed = False

    def compile(self, spec: GrammarSpec) -> "Future[TokenConstraint]":
        """Starts to compile a grammar, if it has not been compiled before.

        Returns:
            The constraint; ConfigError if the grammar cannot be used.

        Raises:
            ConfigError: if it is too large.
            QueueFullError: if too many wait to be compiled.
            EngineClosedError: after `close`.
        """
        check_size(spec, self.limits)
        with self._lock:
            if self._closed:
                raise EngineClosedError("the model is shut down: no grammar is compiled any more")
            future = self._compiled.get(spec)
            if future is None or _can_be_tried_again(future):
                waiting = sum(not f.done() for f in self._compiled.values())
                if waiting >= self.limits.waiting:
                    raise QueueFullError(f"{waiting} grammars wait to be compiled: try again later")
                future = self._threads.submit(self._compile, spec)
                self._compiled[spec] = future
            self._compiled.move_to_end(spec)
            self._shrink()
        return _follower(future)

    def close(self) -> None:
        """Ends the threads and their processes; grammars that wait are cancelled."""
        with self._lock:
            self._closed = True
            trials = [*self._trials]
        self._threads.shutdown(wait=False, cancel_futures=True)
        for trial in trials:
            trial.stop()
        self._threads.shutdown()
        for trial in trials:
            trial.close()

    def _shrink(self) -> None:
        """Forgets the grammars that have not been used for longest."""
        size = sum(len(spec.source.encode()) for spec in self._compiled)
        for spec in [spec for spec, future in self._compiled.items() if future.done()]:
            if len(self._compiled) <= self.limits.cached and size <= self.limits.cached_bytes:
                break
            size -= len(spec.source.encode())
            del self._compiled[spec]

    def _compile(self, spec: GrammarSpec) -> GrammarConstraint:
        from llguidance import LLMatcher, LLParserLimits

        grammar = self._trial().run(spec)
        limits = LLParserLimits(**self.limits.of_parser())
        matcher = LLMatcher(self._vocabulary.trie, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise ConfigError(
                f"the {spec.noun} cannot be used: {short_reason(matcher.get_error())}"
            )
        return GrammarConstraint(matcher, self._vocabulary.vocab_size, self.limits)

    def _trial(self) -> TrialProcess:
        if not hasattr(self._own, "trial"):
            with self._lock:
                if self._closed:
                    raise EngineClosedError("the model is shut down")
                self._own.trial = TrialProcess(self._vocabulary, self.limits)
                self._trials.append(self._own.trial)
        trial: TrialProcess = self._own.trial
        return trial


def _can_be_tried_again(future: "Future[GrammarConstraint]") -> bool:
    """Whether it failed for a reason that is not the grammar's."""
    if not future.done() or future.cancelled():
        return False
    error = future.exception()
    return error is not None and not isinstance(error, ConfigError)


def _follower(leader: "Future[GrammarConstraint]") -> "Future[TokenConstraint]":
    """A future with the same outcome, which one request can cancel without the others."""
    follower: Future[TokenConstraint] = Future()

    def pass_on(done: "Future[GrammarConstraint]") -> None:
        if not follower.set_running_or_notify_cancel():
            return
        if done.cancelled():
            follower.set_exception(EngineClosedError("the model was shut down"))
        elif (error := done.exception()) is not None:
            follower.set_exception(error)
        else:
            follower.set_result(done.result())

    leader.add_done_callback(pass_on)
    return follower
