"""A teacher behind an OpenAI-compatible server, which gives only its most likely tokens.

Documents are sent as prompts of token ids, each with the token that follows it; the answer holds
the most likely tokens at every position of the prompt. There are two dialects:

- vLLM's `prompt_logprobs`, keyed by id.
- `echo` with `logprobs`, keyed by "token_id:N" if the server supports
  `return_tokens_as_token_ids`, else by the text of the token, which several tokens may share.

Shapes: T tokens of a sequence, C tokens of a tile, V vocabulary.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError, TokenizerError
from gemmule.losses.chunked_head import tiles
from gemmule.losses.labels import IGNORED
from gemmule.losses.sparse_targets import Choice, SparseTargets, joined
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.completions import CompletionServer, Refused
from gemmule.teachers.same_tokenizer import probe_texts
from gemmule.teachers.target_spec import TargetSpec
from gemmule.teachers.teacher import Teacher

REQUESTS = 4  # concurrent requests
_ID = "token_id:"
_PROBES = 8
_MAX_PROBE = 64  # tokens

TopLogprobs = dict[int, float]  # log-probabilities at one position, by id


class EndpointTeacher(Teacher):
    """A served model. Its targets are biased: only the most likely tokens are known.

    Args:
        server: the server.
        dataset: the data, whose tokenizer the model must have.
        spec: what is kept; only kind, k and temperature matter here.
        requests: number of concurrent requests.

    Raises:
        ConfigError: for targets that a server cannot give, and for a server that gives too little.
        TokenizerError: when its ids stand for other tokens.
    """

    def __init__(
        self, server: CompletionServer, dataset: Dataset, spec: TargetSpec, requests: int = REQUESTS
    ) -> None:
        check_spec(spec)
        self._server, self._tokenizer, self._spec = server, dataset.tokenizer, spec
        self._pool = ThreadPoolExecutor(requests)
        probes = _probes(dataset)
        self._dialect = self._find_dialect(probes[0])
        for ids in probes:
            self._check_ids(ids)
        compared = json.dumps([server.model, probes])
        self._fingerprint = hashlib.sha256(compared.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Size of the data's vocabulary."""
        return self._tokenizer.vocab_size

    def describe(self) -> dict[str, Any]:
        """Address, served name, and a fingerprint of that name and the compared ids."""
        return {
            "path": self._server.url,
            "backend": "openai",
            "served": self._server.model,
            "fingerprint": self._fingerprint,
        }

    def targets(
        self, batch: Batch, choices: Sequence[Choice], temperature: float
    ) -> list[SparseTargets]:
        """What `choices` keep; `temperature` must be that of the constructor's `spec`."""
        assert temperature == self._spec.temperature
        batch = batch.to("cpu")
        prompts = [
            (row, prompt)
            for row in range(len(batch.tokens_BT))
            for prompt in _prompts(batch, row, self._tokenizer.eos_id)
        ]
        answers = list(self._pool.map(self._rows, [prompt for _, prompt in prompts]))
        results = []
        for row, choose in enumerate(choices):
            positions = [
                position
                for (prompt_row, _), answer in zip(prompts, answers, strict=True)
                if prompt_row == row
                for position in answer
            ]
            results.append(self._chosen(positions, batch.tokens_BT.shape[1], choose))
        return results

    def _chosen(self, positions: list[TopLogprobs], length: int, choose: Choice) -> SparseTargets:
        """What `choose` keeps of a sequence's distributions; those at padding are arbitrary."""
        positions = positions + [positions[-1]] * (length - len(positions))
        parts = []
        for _, tokens in tiles(slice(0, length), self.vocab_size):
            parts.append(choose(self._distributions(positions[tokens])))
        return dataclasses.replace(joined(parts), temperature=self._spec.temperature)

    def _distributions(self, positions: list[TopLogprobs]) -> Tensor:
        """Distributions [C, V] that agree with the known log-probabilities.

        The remaining probability is spread evenly over all other ids, of which each gets at most
        that of the least likely known id.
        """
        p_CV = torch.empty(len(positions), self.vocab_size, dtype=torch.float64)
        for p_V, known_logs in zip(p_CV, positions, strict=True):
            ids = torch.tensor(list(known_logs))
            logs = torch.tensor(list(known_logs.values())).double()
            known = logs.exp()
            rest = (1.0 - known.sum()).clamp(min=0.0) / max(1, self.vocab_size - len(ids))
            p_V.fill_(torch.minimum(rest, known.min()) if len(ids) < self.vocab_size else 0.0)
            p_V[ids] = known
        if self._spec.temperature != 1.0:  # top_k only: the rest does not matter
            p_CV = p_CV ** (1.0 / self._spec.temperature)
        return p_CV.float()

    def _rows(self, prompt: list[int]) -> list[TopLogprobs]:
        """The most likely tokens after each token of a prompt except the last."""
        positions = self._dialect.positions(self._ask(prompt), len(prompt))
        return [self._most_likely(position) for position in positions[1:]]

    def _ask(self, prompt: list[int]) -> dict[str, Any]:
        return self._server.complete(prompt, **self._dialect.settings)[0]

    def _most_likely(self, position: dict[str, float]) -> TopLogprobs:
        """The k most likely tokens; the server may give the prompt's own token in addition."""
        by_id = {self._id(key): value for key, value in position.items()}
        best = sorted(by_id.items(), key=lambda item: -item[1])[: self._spec.k]
        if len(best) < self._spec.k:
            raise ConfigError(
                f"{self._server.url} gives the {len(best)} most likely tokens at a position, and "
                f"k = {self._spec.k} are to be kept: lower --k, or let it give more (vLLM: "
                "--max-logprobs)"
            )
        return dict(best)

    def _id(self, key: str) -> int:
        if key.startswith(_ID) or (self._dialect.by_id and key.isdigit()):
            token = int(key.removeprefix(_ID))
            if token >= self.vocab_size:
                raise TokenizerError(
                    f"{self._server.url} gives id {token}, and the data's tokenizer has "
                    f"{self.vocab_size} tokens: it serves a model with another tokenizer"
                )
            return token
        ids = _ids_by_text(self._tokenizer).get(key.replace("\u2581", " "), ())
        if len(ids) != 1:
            raise TokenizerError(
                f"{self._server.url} gives tokens by their text, and {key!r} is the text of "
                f"{len(ids) or 'no'} tokens of the data's tokenizer: it serves another tokenizer, "
                "or has to give ids (vLLM does)"
            )
        return ids[0]

    def _find_dialect(self, prompt: list[int]) -> "_Dialect":
        k, refusals = self._spec.k, []
        for dialect in (
            _Dialect({"prompt_logprobs": k, "max_tokens": 1}, by_id=True),
            _Dialect({"echo": True, "logprobs": k, "max_tokens": 0, _AS_IDS: True}),
            _Dialect({"echo": True, "logprobs": k, "max_tokens": 1, _AS_IDS: True}),
            _Dialect({"echo": True, "logprobs": k, "max_tokens": 0}),
            _Dialect({"echo": True, "logprobs": k, "max_tokens": 1}),
        ):
            self._dialect = dialect
            try:
                if dialect.positions(self._ask(prompt), len(prompt)):
                    return dialect
            except Refused as e:
                refusals.append(str(e))
        raise ConfigError(
            f"{self._server.url} does not give the {k} most likely tokens at every position of a "
            "prompt of token ids, neither with prompt_logprobs (vLLM) nor with echo and logprobs"
            + (f"; its answer: {refusals[0]}" if refusals else "")
            + ". Lower --k if that is more than it gives (vLLM: 20 unless --max-logprobs is set)"
        )

    def _check_ids(self, prompt: list[int]) -> None:
        """Compares the server's texts of a prompt's tokens with those of the data's tokenizer."""
        texts = self._dialect.texts(self._ask(prompt), prompt)
        for token, text in zip(prompt, texts, strict=True):
            ours = self._tokenizer.decode([token], control=True)
            if text is None or "\ufffd" in text + ours or token < FIRST_LEARNED_ID:
                continue
            # Some servers leave out the space at the start of a single token.
            if text.replace("\u2581", " ").strip(" ") != ours.strip(" "):
                raise TokenizerError(
                    f"{self._server.url} serves a model with another tokenizer than the data's: "
                    f"id {token} is {text!r} there and {ours!r} here, in {prompt[:8]}…. Prepare "
                    "the data with its tokenizer if that is one of Gemma's"
                )


def check_spec(spec: TargetSpec) -> None:
    """Refuses targets that cannot be computed from the most likely tokens.

    Raises:
        ConfigError: for all but top_k, and top_k_tail at temperature 1.
    """
    if spec.kind not in ("top_k", "top_k_tail"):
        raise ConfigError(
            f"{spec.kind} targets need the teacher's whole distribution, and a server gives only "
            "its most likely tokens: record with --kind top_k_tail (or top_k) and a --k that it "
            "gives"
        )
    if spec.kind == "top_k_tail" and spec.temperature != 1.0:
        raise ConfigError(
            f"temperature = {spec.temperature:g}: the probability of the tokens that a server does "
            "not give is unknown at other temperatures than 1: use 1, or --kind top_k"
        )


_AS_IDS = "return_tokens_as_token_ids"


@dataclasses.dataclass(frozen=True)
class _Dialect:
    """Settings of a request, and the place of the most likely tokens in the answer."""

    settings: dict[str, Any]
    by_id: bool = False

    def positions(self, choice: dict[str, Any], length: int) -> list[dict[str, float]]:
        """Log-probabilities by the server's names at each position; those at the first are empty.

        The list is empty when the answer has none, or values of the wrong type.
        """
        if self.by_id:
            given = choice.get("prompt_logprobs")
            extra = 0
        else:
            given = (choice.get("logprobs") or {}).get("top_logprobs")
            extra = int(self.settings["max_tokens"])  # the generated token comes last
        if not isinstance(given, list) or not length <= len(given) <= length + extra:
            return []
        rows: list[dict[str, float]] = [{}]
        for entries in given[1:length]:
            if not isinstance(entries, dict) or not entries:
                return []
            try:
                rows.append({k: float(_logprob(v)) for k, v in entries.items()})
            except (TypeError, ValueError):
                return []
        return rows

    def texts(self, choice: dict[str, Any], prompt: list[int]) -> list[str | None]:
        """The server's text of each token of a prompt; None where it gives none."""
        if self.by_id:
            given = choice.get("prompt_logprobs") or []
            texts: list[str | None] = [None]
            for token, entries in zip(prompt[1:], given[1:], strict=True):
                entry = entries.get(str(token))
                if not isinstance(entry, dict):
                    return [None, *(["\u2205"] * (len(prompt) - 1))]  # it read another id
                texts.append(entry.get("decoded_token"))
            return texts
        tokens = [str(t) for t in (choice.get("logprobs") or {}).get("tokens") or []]
        tokens = tokens[: len(prompt)]
        if len(tokens) != len(prompt):
            return [None] * len(prompt)
        return [None if t.startswith(_ID) else t for t in tokens]


def _logprob(value: Any) -> Any:
    return value["logprob"] if isinstance(value, dict) else value


def _probes(dataset: Dataset) -> list[list[int]]:
    """Prompts on which ids are compared: documents, and texts on which tokenizers differ."""
    texts = [text for text in probe_texts(dataset) if text]
    chosen = texts[:: max(1, len(texts) // _PROBES)] + texts[-_PROBES:]
    encoded = [dataset.tokenizer.encode(text, bos=True)[:_MAX_PROBE] for text in chosen]
    return [ids for ids in encoded if len(ids) > 1]


def _prompts(batch: Batch, row: int, filler: int) -> list[list[int]]:
    """The documents of a sequence, each with the token that follows it, or `filler`."""
    values, counts = batch.doc_ids_BT[row].unique_consecutive(return_counts=True)
    prompts, start = [], 0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        stop = start + count
        if value:
            follows = int(batch.labels_BT[row, stop - 1])
            last = filler if follows == IGNORED else follows
            prompts.append([*batch.tokens_BT[row, start:stop].tolist(), last])
        start = stop
    return prompts


@functools.lru_cache(maxsize=1)
def _ids_by_text(tokenizer: Tokenizer) -> dict[str, tuple[int, ...]]:
    """Ids of each text. Byte tokens count only where no other token has that text."""
    ids: dict[str, tuple[int, ...]] = {}
    bytes_ = range(FIRST_BYTE_ID, FIRST_LEARNED_ID)
    others = [i for i in range(tokenizer.vocab_size) if i not in bytes_]
    for i in [*others, *bytes_]:
        text = tokenizer.decode([i], control=True)
        if i not in bytes_ or text not in ids or ids[text][0] in bytes_:
            ids[text] = (*ids.get(text, ()), i)
    return ids
