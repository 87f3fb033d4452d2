"""A gemmule model for lm-evaluation-harness, where its name is "gemmule".

    lm_eval --model gemmule --model_args pretrained=runs/quickstart/student

Texts become tokens as in lm-eval's "hf" backend, with one <bos> first. A context that is too long
loses its oldest tokens and keeps <bos>. The text of a rolling score is split into lm-eval's
windows, and <bos> precedes the first of them.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from gemmule.console import ProgressBar
from gemmule.errors import ConfigError
from gemmule.evals.response_cache import ResponseCache, request_key
from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel, load
from gemmule.infer.prefix_scoring import ContinuationGroup
from gemmule.infer.runners.choose import make_batch_runner

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
else:
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError:  # without the extra `eval`, which load_tasks asks for by name
        TemplateLM = object

# Index of the request, response, and whether the context was truncated.
Responses = Iterator[tuple[int, Any, bool]]


# Names that tasks use for the longest response; the first one present counts, as in lm-eval.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NOT_FINITE = "the model's logits are not finite numbers: it cannot be evaluated"


class GemmuleLM(TemplateLM):
    """Responds to lm-eval's requests: log-likelihoods, rolling log-likelihoods, generation.

    A response does not depend on the other requests, nor on their order.

    Attributes:
        truncated: number of requests of each task whose context was too long for the model.
        label: label of the progress bar.
    """

    tokenizer: Any
    label = "requests"

    def __init__(
        self,
        pretrained: str | LanguageModel,
        *,
        dtype: str | None = None,
        device: str | None = None,
        quantize: str | None = None,
        max_gen_toks: int = 256,
        cache: ResponseCache | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Loads a model, or takes a loaded one.

        Args:
            pretrained: a run, an HF folder, a hub id, a .gguf, .ckpt or .npz file.
            dtype: data type of the weights.
            device: torch device; the CPU if there is no such device, or with `quantize`.
            quantize: packed format to quantize the weights to while they are read.
            max_gen_toks: longest response if a task does not set one, in tokens.
            cache: keeps responses on disk; None: they are kept in memory only.
            batch_size: ignored; lm-eval passes it, and batches here are as large as memory allows.
            max_batch_size: ignored as well.

        Raises:
            UserError: if there is no such model.
        """
        super().__init__()
        if isinstance(pretrained, LanguageModel):
            self._lm = pretrained
        else:
            self._lm = load(
                pretrained, dtype=dtype, device=_device(device, quantize), quantize=quantize
            )
        self.tokenizer = self._lm.tokenizer
        self.max_length = self._lm.config.max_position_embeddings
        self.max_gen_toks = int(max_gen_toks)
        self.truncated: Counter[str] = Counter()
        self._cache = cache
        self._batch_engine: Engine | None = None
        self._chats: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a document."""
        return int(self.tokenizer.eos_id)

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that precedes a document."""
        return int(self.tokenizer.bos_id)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's fingerprint, which lm-eval records as its name."""
        return str(self.tokenizer.fingerprint)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Encodes a text, with <bos> first unless `add_special_tokens` is False.

        Raises:
            ConfigError: for a text that already begins with <bos>: it would be there twice.
        """
        if string in self._chats:
            return list(self._chats[string])
        if string.lstrip().startswith("<bos>"):
            raise ConfigError(
                f"a prompt begins with <bos> ({string[:40]!r}), which is added to every prompt: "
                "remove it from the task's template"
            )
        return list(self.tokenizer.encode(string, bos=add_special_tokens is not False))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Renders a conversation as text that `tok_encode` recognizes.

        A message cannot end its own turn, whatever it contains: the ids are made from the messages
        here, not from the text later.
        """
        ids = self.tokenizer.render_chat(chat_history, add_generation_prompt)
        text = str(self.tokenizer.decode(ids, control=True))
        self._chats[text] = ids
        return text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What lm-eval records: "gemma" for Gemma's own turns, else the model's template."""
        return (self.tokenizer.chat_template or "gemma") if chat_template else ""

    def loglikelihood(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether greedy decoding gives it."""
        responses = self._respond("loglikelihood", requests, self._score, disable_tqdm)
        return [(float(value), bool(greedy)) for value, greedy in responses]

    def loglikelihood_rolling(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each text; <bos> precedes its first token and is not scored."""
        return self._respond("rolling", requests, self._roll, disable_tqdm)

    def generate_until(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[str]:
        """The generated continuation of each context."""
        return self._respond("generate", requests, self._generate, disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """Scores requests that are already encoded, for lm-eval's base class."""
        pairs = [(list(context), list(ids)) for _, context, ids in requests]
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for i, value in self._scored(pairs):
            scores[i] = value
        return scores

    def _respond(
        self,
        kind: str,
        requests: Sequence["Instance"],
        run: Callable[[list["Instance"]], Responses],
        hide_progress: bool,
    ) -> list[Any]:
        """Responses from the cache; the others are computed by `run` and added to it."""
        keys = _keys(kind, requests)
        known = {} if self._cache is None else self._cache.responses
        results: dict[str, Any] = {key: known[key] for key in keys if key in known}
        missing = [i for i, key in enumerate(keys) if key not in results]
        if missing:
            shown: Any = nullcontext()
            if not hide_progress:
                shown = ProgressBar(self.label, len(keys), "req", len(results))
            with shown as bar:
                for group in _grouped(run([requests[i] for i in missing])):
                    entries = [(keys[missing[i]], [response, cut]) for i, response, cut in group]
                    if self._cache is not None:
                        self._cache.add(entries)
                    results.update(entries)
                    if bar is not None:
                        bar.update(
                            len(results), str(requests[missing[group[-1][0]]].task_name or "")
                        )
        for key, request in zip(keys, requests, strict=True):
            self.truncated[str(request.task_name)] += results[key][1]
        return [results[key][0] for key in keys]

    def _score(self, requests: list["Instance"]) -> Responses:
        pairs, cut = [], []
        for request in requests:
            whole = self._pair(*request.args)
            pairs.append(self._fitted(request, *whole))
            cut.append(pairs[-1] != whole)
        for i, score in self._scored(pairs):
            yield i, score, cut[i]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encodes context and continuation; spaces between them belong to the continuation."""
        if not context:
            return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
        if context in self._chats:
            ids = self.tok_encode(continuation, add_special_tokens=False)
            return self.tok_encode(context), ids
        return self._encode_pair(context, continuation)

    def _fitted(
        self, request: "Instance", context: list[int], continuation: list[int]
    ) -> tuple[list[int], list[int]]:
        """The pair, without the oldest tokens of a context that is too long; <bos> is kept."""
        if not continuation:
            raise ConfigError(
                f"task {request.task_name}: the continuation of {request.args[0][-40:]!r} has no "
                "tokens: there is nothing to score"
            )
        over = len(context) + len(continuation) - 1 - self.max_length
        if over <= 0:
            return context, continuation
        if over < len(context) - 1:
            return context[:1] + context[1 + over :], continuation
        return context[:1], continuation[-self.max_length :]

    def _scored(
        self, pairs: Sequence[tuple[list[int], list[int]]]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Log-likelihood of each pair; pairs that share a context are computed together."""
        members: dict[tuple[int, ...], list[int]] = {}
        for i, (context, _) in enumerate(pairs):
            members.setdefault(tuple(context), []).append(i)
        groups = list(members.values())
        texts = [ContinuationGroup(pairs[g[0]][0], [pairs[i][1] for i in g]) for g in groups]
        for places, scores in self._lm.score_continuations(texts):
            for place, of_text in zip(places, scores, strict=True):
                for i, score in zip(groups[place], of_text, strict=True):
                    value = math.fsum(score.log_probs)
                    if not math.isfinite(value):
                        raise ConfigError(_NOT_FINITE)
                    yield i, (value, all(score.greedy))

    def _roll(self, requests: list["Instance"]) -> Responses:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        for i, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            yield i, math.fsum(value for _, (value, _) in self._scored(pairs)), False

    def _generate(self, requests: list["Instance"]) -> Responses:
        engine = self._engine()
        pending: dict[int, tuple[int, bool]] = {}
        for i, request in enumerate(requests):
            context, settings = request.args
            params = self._params(settings)
            prompt, cut = self._prompt(context, params.max_new_tokens)
            # Samples differ between documents, and are reproducible for each.
            row = int(request.doc_id or 0)
            pending[engine.submit(Request(prompt, params, row))] = i, cut
        while pending:
            for output in engine.step():
                if output.completion is not None and output.request_id in pending:
                    index, cut = pending.pop(output.request_id)
                    yield index, _text(output.completion), cut

    def _engine(self) -> Engine:
        """An engine for large batches; the model's own engine is made for small ones."""
        if self._batch_engine is None:
            self._batch_engine = Engine(make_batch_runner(self._lm.model), self._lm.tokenizer)
        return self._batch_engine

    def _params(self, settings: dict[str, Any]) -> SamplingParams:
        known = {"until", "do_sample", "temperature", "top_p", "top_k", "seed", "num_beams"}
        unknown = sorted(set(settings) - known - set(_LENGTHS))
        if unknown:
            raise ConfigError(
                f"a task sets {unknown[0]!r} for generation, which gemmule does not know"
            )
        if (settings.get("num_beams") or 1) != 1:
            raise ConfigError(
                f"a task asks for beam search with num_beams {settings['num_beams']}: only 1 is "
                "supported"
            )
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        temperature = float(settings.get("temperature") or 0.0)
        if settings.get("do_sample") is False:
            temperature = 0.0
        elif settings.get("do_sample") and "temperature" not in settings:
            temperature = 1.0
        longest = int(next((settings[n] for n in _LENGTHS if settings.get(n)), self.max_gen_toks))
        return SamplingParams(
            # The response never takes more than half of the context from its prompt.
            max_new_tokens=min(longest, max(1, self.max_length // 2)),
            temperature=temperature,
            top_p=float(settings.get("top_p") or 1.0),
            top_k=settings.get("top_k") or None,
            seed=int(settings.get("seed") or 0),
            stop=tuple(s for s in stops if s),
        )

    def _prompt(self, context: str, max_new_tokens: int) -> tuple[list[int], bool]:
        """The prompt's ids without the oldest that do not fit, and whether any were cut."""
        ids = self.tok_encode(context)
        over = len(ids) + max_new_tokens - self.max_length
        return (ids, False) if over <= 0 else (ids[:1] + ids[1 + over :], True)


def _device(requested: str | None, quantize: str | None) -> str:
    """The device for the model: lm-eval's command requests "cuda:0" on every machine."""
    import torch

    if requested is None or quantize is not None:
        return "cpu"
    if requested.startswith("cuda") and not torch.cuda.is_available():
        return "cpu"
    return requested


def _text(completion: Completion) -> str:
    if completion.finish_reason == "error":
        raise ConfigError(_NOT_FINITE)
    return completion.text


def _keys(kind: str, requests: Iterable["Instance"]) -> list[str]:
    """A key for each request; repeats of a request get keys of their own."""
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        key = request_key(kind, request.task_name, request.doc_id, request.idx, list(request.args))
        seen[key] += 1
        keys.append(key if seen[key] == 1 else request_key(key, seen[key]))
    return keys


def _grouped(responses: Responses, size: int = 512) -> Iterator[list[tuple[int, Any, bool]]]:
    """Groups responses that arrive within a second, so that they are written together."""
    group: list[tuple[int, Any, bool]] = []
    began = time.monotonic()
    for response in responses:
        group.append(response)
        if len(group) == size or time.monotonic() - began > 1.0:
            yield group
            group, began = [], time.monotonic()
    if group:
        yield group


def register() -> None:
    """Registers "gemmule" as a model of lm-eval."""
    from lm_eval.api.registry import model_registry

    if "gemmule" not in model_registry:
        model_registry.register("gemmule", target=GemmuleLM)
