"""A gemmule model as lm-evaluation-harness sees one.

Its name there is "gemmule": lm_eval --model gemmule --model_args pretrained=runs/quickstart/student

How texts become tokens follows lm-eval's "hf" backend, with <bos> first and once, also where a long
context is cut: its oldest tokens go, <bos> stays. A rolling score's text is cut into lm-eval's
windows, and <bos> stands before the first of them.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from gemmule.console import ProgressBar
from gemmule.errors import ConfigError
from gemmule.evals.response_cache import Journal, key_of
from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.engine import Engine
from gemmule.infer.language_model import LanguageModel, load
from gemmule.infer.prefix_scoring import Branches
from gemmule.infer.runners.choose import make_batch_runner

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
else:
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError:  # without the extra `eval`, which load_tasks asks for by name
        TemplateLM = object

# Place among the requests, answer, and whether its context had to be cut.
Answers = Iterator[tuple[int, Any, bool]]


# What tasks call the longest answer; the first that is there counts, as in lm-eval.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NOT_FINITE = "the model's logits are no finite numbers: it cannot be evaluated"


class GemmuleLM(TemplateLM):
    """Answers lm-eval's requests: log-likelihoods, rolling ones, generation.

    Answers do not depend on what else is asked, nor in which order.

    Attributes:
        truncated: by task, of how many requests the context was too long for the model.
    """

    tokenizer: Any

    def __init__(
        self,
        pretrained: str | LanguageModel,
        *,
        dtype: str | None = None,
        device: str | None = None,
        quantize: str | None = None,
        max_gen_toks: int = 256,
        journal: Journal | None = None,
        label: str = "asking",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Loads a model, or takes a loaded one.

        Args:
            pretrained: a run, an HF folder, a hub id, a .gguf, .ckpt or .npz file.
            dtype: of the weights.
            device: where it runs; the CPU where there is no such graphics card, or `quantize`.
            quantize: pack the weights while they are read.
            max_gen_toks: the longest answer where a task does not say.
            journal: keeps answers; None: they are in memory only.
            label: of the progress bar.
            batch_size: taken, as lm-eval passes it, and not used: batches are as large as fits.
            max_batch_size: the same.

        Raises:
            UserError: when there is no such model.
        """
        super().__init__()
        if isinstance(pretrained, LanguageModel):
            self._lm = pretrained
        else:
            where = _device(device, quantize)
            self._lm = load(pretrained, dtype=dtype, device=where, quantize=quantize)
        self.tokenizer = self._lm.tokenizer
        self.max_length = self._lm.config.max_position_embeddings
        self.max_gen_toks = int(max_gen_toks)
        self.truncated: Counter[str] = Counter()
        self._journal, self._label = journal, label
        self._made: Engine | None = None
        self._chats: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        """Ends a document."""
        return int(self.tokenizer.eos_id)

    @property
    def prefix_token_id(self) -> int:
        """Stands before a document."""
        return int(self.tokenizer.bos_id)

    @property
    def tokenizer_name(self) -> str:
        """Who the tokenizer is."""
        return str(self.tokenizer.fingerprint)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text, <bos> first unless `add_special_tokens` is False.

        Raises:
            ConfigError: for a text that brings its own <bos>: it would stand there twice.
        """
        if string in self._chats:
            return list(self._chats[string])
        if string.lstrip().startswith("<bos>"):
            raise ConfigError(
                f"a prompt begins with <bos> ({string[:40]!r}); it is added here, once: take it "
                "out of the task's template"
            )
        return list(self.tokenizer.encode(string, bos=add_special_tokens is not False))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text that `tok_encode` knows again.

        Whatever a message spells, it cannot end its turn: the ids are made of the messages here,
        not of the text later.
        """
        ids = self.tokenizer.render_chat(chat_history, add_generation_prompt)
        text = str(self.tokenizer.decode(ids, control=True))
        self._chats[text] = ids
        return text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What lm-eval notes of the template."""
        return "gemma" if chat_template else ""

    def loglikelihood(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """See lm-eval's `LM`."""
        found = self._answered("loglikelihood", requests, self._score, disable_tqdm)
        return [(float(value), bool(greedy)) for value, greedy in found]

    def loglikelihood_rolling(
        self, requests: list["Instance"], disable_tqdm: bool = False
    ) -> list[float]:
        """See lm-eval's `LM`; <bos> is what the first token follows, and is not scored."""
        return self._answered("rolling", requests, self._roll, disable_tqdm)

    def generate_until(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[str]:
        """See lm-eval's `LM`."""
        return self._answered("generate", requests, self._generate, disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """For lm-eval's base class: of ids that are there already."""
        pairs = [(list(context), list(ids)) for _, context, ids in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for i, value in self._scored(pairs):
            found[i] = value
        return found

    def _answered(
        self,
        kind: str,
        requests: Sequence["Instance"],
        run: Callable[[list["Instance"]], Answers],
        quiet: bool,
    ) -> list[Any]:
        """Answers from the journal, the others from `run` and into it."""
        keys = _keys(kind, requests)
        kept = {} if self._journal is None else self._journal.kept
        found: dict[str, Any] = {key: kept[key] for key in keys if key in kept}
        left = [i for i, key in enumerate(keys) if key not in found]
        if left:
            shown: Any = nullcontext()
            if not quiet:
                shown = ProgressBar(self._label, len(keys), "req", len(found))
            with shown as bar:
                for some in _together(run([requests[i] for i in left])):
                    answers = [(keys[left[place]], [answer, cut]) for place, answer, cut in some]
                    if self._journal is not None:
                        self._journal.add(answers)
                    found.update(answers)
                    if bar is not None:
                        bar.update(len(found), str(requests[left[some[-1][0]]].task_name or ""))
        for key, request in zip(keys, requests, strict=True):
            self.truncated[str(request.task_name)] += found[key][1]
        return [found[key][0] for key in keys]

    def _score(self, requests: list["Instance"]) -> Answers:
        pairs, cut = [], []
        for request in requests:
            whole = self._pair(*request.args)
            pairs.append(self._fitted(request, *whole))
            cut.append(pairs[-1] != whole)
        for i, answer in self._scored(pairs):
            yield i, answer, cut[i]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Context and continuation as ids; spaces between the two belong to the latter."""
        if not context:
            return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
        if context in self._chats:
            ids = self.tok_encode(continuation, add_special_tokens=False)
            return self.tok_encode(context), ids
        return self._encode_pair(context, continuation)

    def _fitted(
        self, request: "Instance", context: list[int], continuation: list[int]
    ) -> tuple[list[int], list[int]]:
        """The pair, without the oldest tokens of a context that is too long; <bos> stays."""
        if not continuation:
            raise ConfigError(
                f"task {request.task_name}: a continuation of no tokens after "
                f"{request.args[0][-40:]!r}: nothing to score"
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
        """Pairs with one context become branches of one text."""
        members: dict[tuple[int, ...], list[int]] = {}
        for i, (context, _) in enumerate(pairs):
            members.setdefault(tuple(context), []).append(i)
        groups = list(members.values())
        texts = [Branches(pairs[g[0]][0], [pairs[i][1] for i in g]) for g in groups]
        for places, scores in self._lm.score_branches(texts):
            for place, of_text in zip(places, scores, strict=True):
                for i, score in zip(groups[place], of_text, strict=True):
                    value = math.fsum(score.log_probs)
                    if not math.isfinite(value):
                        raise ConfigError(_NOT_FINITE)
                    yield i, (value, all(score.greedy))

    def _roll(self, requests: list["Instance"]) -> Answers:
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

    def _generate(self, requests: list["Instance"]) -> Answers:
        engine = self._engine()
        numbers: dict[int, tuple[int, bool]] = {}
        for i, request in enumerate(requests):
            context, settings = request.args
            params = self._params(settings)
            prompt, cut = self._prompt(context, params.max_new_tokens)
            # Draws differ from document to document, and are the same again for each.
            row = int(request.doc_id or 0)
            numbers[engine.submit(Request(prompt, params, row))] = i, cut
        while numbers:
            for event in engine.step():
                if event.completion is not None and event.id in numbers:
                    place, cut = numbers.pop(event.id)
                    yield place, _text(event.completion), cut

    def _engine(self) -> Engine:
        """For many prompts at once; the model's own is made for few."""
        if self._made is None:
            self._made = Engine(make_batch_runner(self._lm.model), self._lm.tokenizer)
        return self._made

    def _params(self, settings: dict[str, Any]) -> SamplingParams:
        known = {"until", "do_sample", "temperature", "top_p", "top_k", "seed", "num_beams"}
        unknown = sorted(set(settings) - known - set(_LENGTHS))
        if unknown:
            raise ConfigError(f"a task asks for {unknown[0]!r} in generation: not known here")
        if (settings.get("num_beams") or 1) != 1:
            raise ConfigError(
                f"a task asks for a search with num_beams {settings['num_beams']}: only 1 is there"
            )
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        temperature = float(settings.get("temperature") or 0.0)
        if settings.get("do_sample") is False:
            temperature = 0.0
        elif settings.get("do_sample") and "temperature" not in settings:
            temperature = 1.0
        most = int(next((settings[n] for n in _LENGTHS if settings.get(n)), self.max_gen_toks))
        return SamplingParams(
            # An answer never takes more than half of the context from its question.
            max_new_tokens=min(most, max(1, self.max_length // 2)),
            temperature=temperature,
            top_p=float(settings.get("top_p") or 1.0),
            top_k=settings.get("top_k") or None,
            seed=int(settings.get("seed") or 0),
            stop=tuple(s for s in stops if s),
        )

    def _prompt(self, context: str, room: int) -> tuple[list[int], bool]:
        """The prompt's ids, without the oldest where they leave no room; whether any were cut."""
        ids = self.tok_encode(context)
        over = len(ids) + room - self.max_length
        return (ids, False) if over <= 0 else (ids[:1] + ids[1 + over :], True)


def _device(asked: str | None, quantize: str | None) -> str:
    """Where a model is put: lm-eval's command asks for "cuda:0" on any machine."""
    import torch

    if asked is None or quantize is not None:
        return "cpu"
    return "cpu" if asked.startswith("cuda") and not torch.cuda.is_available() else asked


def _text(completion: Completion) -> str:
    if completion.finish_reason == "error":
        raise ConfigError(_NOT_FINITE)
    return completion.text


def _keys(kind: str, requests: Iterable["Instance"]) -> list[str]:
    """One key a request; the repeats of one are told apart."""
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        key = key_of(kind, request.task_name, request.doc_id, request.idx, list(request.args))
        seen[key] += 1
        keys.append(key if seen[key] == 1 else key_of(key, seen[key]))
    return keys


def _together(answers: Answers, most: int = 512) -> Iterator[list[tuple[int, Any, bool]]]:
    """Answers some at a time: what is found together is written together."""
    some: list[tuple[int, Any, bool]] = []
    began = time.monotonic()
    for answer in answers:
        some.append(answer)
        if len(some) == most or time.monotonic() - began > 1.0:
            yield some
            some, began = [], time.monotonic()
    if some:
        yield some


def register() -> None:
    """Makes "gemmule" a model that lm-eval knows."""
    from lm_eval.api.registry import model_registry

    if "gemmule" not in model_registry:
        model_registry.register("gemmule", target=GemmuleLM)
