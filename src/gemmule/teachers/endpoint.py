"""A teacher behind an OpenAI-compatible server, of which only the likeliest pieces are known.

Documents go out as prompts of token ids, each with the token that follows it, and come back with
the likeliest pieces at every place of the prompt. Two dialects:

- vLLM's `prompt_logprobs`: keyed by id.
- `echo` with `logprobs`: keyed by "token_id:N" where the server knows `return_tokens_as_token_ids`,
  else by the pieces' texts, which not every piece has to itself.

Shapes: T tokens of a row, C tokens of a tile, V vocabulary.
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

REQUESTS = 4  # in flight
_ID = "token_id:"
_PROBES = 8
_LONGEST_PROBE = 64  # tokens

Row = dict[int, float]  # log-probabilities by id, of one place


class EndpointTeacher:
    """A served model; see Teacher. Biased: what the server does not say is not known.

    Args:
        server: who is asked.
        dataset: the data whose ids it is to understand.
        spec: what is kept; only its kind, k and temperature count here.
        requests: how many are in flight at once.

    Raises:
        ConfigError: for targets that cannot be had this way, and a server that gives too little.
        TokenizerError: when its ids mean something else.
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
        said = json.dumps([server.model, probes])
        self._fingerprint = hashlib.sha256(said.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Pieces of the data's tokenizer."""
        return self._tokenizer.vocab_size

    def describe(self) -> dict[str, Any]:
        """Address, served name, and a fingerprint of that name and the ids that were probed."""
        return {
            "path": self._server.url,
            "backend": "openai",
            "served": self._server.model,
            "fingerprint": self._fingerprint,
        }

    def targets(
        self, batch: Batch, choices: Sequence[Choice], temperature: float
    ) -> list[SparseTargets]:
        """See Teacher; `temperature` has to be the one of the constructor's spec."""
        assert temperature == self._spec.temperature
        batch = batch.to("cpu")
        prompts = [
            (row, prompt)
            for row in range(len(batch.tokens_BT))
            for prompt in _prompts(batch, row, self._tokenizer.eos_id)
        ]
        answers = list(self._pool.map(self._rows, [prompt for _, prompt in prompts]))
        found = []
        for row, choose in enumerate(choices):
            rows = [
                place
                for (of, _), answer in zip(prompts, answers, strict=True)
                if of == row
                for place in answer
            ]
            found.append(self._chosen(rows, batch.tokens_BT.shape[1], choose))
        return found

    def _chosen(self, rows: list[Row], length: int, choose: Choice) -> SparseTargets:
        """What `choose` keeps of a row's distributions; those of padding are anything."""
        rows = rows + [rows[-1]] * (length - len(rows))
        parts = []
        for _, tokens in tiles(slice(0, length), self.vocab_size):
            parts.append(choose(self._distributions(rows[tokens])))
        return dataclasses.replace(joined(parts), temperature=self._spec.temperature)

    def _distributions(self, rows: list[Row]) -> Tensor:
        """Distributions [C, V] that agree with all that is known of them.

        What is left of the mass is spread evenly over all other ids. None of them thereby gets
        more than the least likely known one, because none has more.
        """
        p_CV = torch.empty(len(rows), self.vocab_size, dtype=torch.float64)
        for p_V, row in zip(p_CV, rows, strict=True):
            ids, logs = torch.tensor(list(row)), torch.tensor(list(row.values())).double()
            known = logs.exp()
            rest = (1.0 - known.sum()).clamp(min=0.0) / max(1, self.vocab_size - len(ids))
            p_V.fill_(torch.minimum(rest, known.min()) if len(ids) < self.vocab_size else 0.0)
            p_V[ids] = known
        if self._spec.temperature != 1.0:  # of top_k: the rest is not looked at
            p_CV = p_CV ** (1.0 / self._spec.temperature)
        return p_CV.float()

    def _rows(self, prompt: list[int]) -> list[Row]:
        """What is likeliest after each token of a prompt but the last."""
        places = self._dialect.places(self._ask(prompt), len(prompt))
        return [self._likeliest(place) for place in places[1:]]

    def _ask(self, prompt: list[int]) -> dict[str, Any]:
        return self._server.complete(prompt, **self._dialect.settings)[0]

    def _likeliest(self, place: dict[str, float]) -> Row:
        """The k likeliest of a place; the prompt's own token may have come on top of them."""
        row = {self._id(key): value for key, value in place.items()}
        best = sorted(row.items(), key=lambda item: -item[1])[: self._spec.k]
        if len(best) < self._spec.k:
            raise ConfigError(
                f"{self._server.url} gives the {len(best)} likeliest pieces of a place, and "
                f"k = {self._spec.k} are to be kept: lower --k, or let it give more (vLLM: "
                "--max-logprobs)"
            )
        return dict(best)

    def _id(self, key: str) -> int:
        if key.startswith(_ID) or (self._dialect.by_id and key.isdigit()):
            found = int(key.removeprefix(_ID))
            if found >= self.vocab_size:
                raise TokenizerError(
                    f"{self._server.url} speaks of id {found}, and the data's tokenizer has "
                    f"{self.vocab_size} pieces: it serves a model with another tokenizer"
                )
            return found
        ids = _ids_by_text(self._tokenizer).get(key.replace("\u2581", " "), ())
        if len(ids) != 1:
            raise TokenizerError(
                f"{self._server.url} names pieces by their text, and {key!r} is "
                f"{'none of the' if not ids else f'{len(ids)} of the'} data's pieces: it serves "
                "another tokenizer, or has to give ids (vLLM does)"
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
                if dialect.places(self._ask(prompt), len(prompt)):
                    return dialect
            except Refused as e:
                refusals.append(str(e))
        raise ConfigError(
            f"{self._server.url} does not give the {k} likeliest pieces at every place of a prompt "
            "of token ids, neither with prompt_logprobs (vLLM) nor with echo and logprobs"
            + (f"; it said: {refusals[0]}" if refusals else "")
            + ". Lower --k if that is more than it gives (vLLM: 20 unless --max-logprobs is set)"
        )

    def _check_ids(self, prompt: list[int]) -> None:
        """Compares what the server calls a prompt's tokens with what they are here."""
        texts = self._dialect.texts(self._ask(prompt), prompt)
        for token, text in zip(prompt, texts, strict=True):
            ours = self._tokenizer.decode([token], control=True)
            if text is None or "\ufffd" in text + ours or token < FIRST_LEARNED_ID:
                continue
            # Some servers leave out the space that a lone piece begins with.
            if text.replace("\u2581", " ").strip(" ") != ours.strip(" "):
                raise TokenizerError(
                    f"{self._server.url} serves a model with another tokenizer than the data's: "
                    f"id {token} is {text!r} to it and {ours!r} here, in {prompt[:8]}…. Prepare "
                    "the data with its tokenizer if that is one of Gemma's"
                )


def check_spec(spec: TargetSpec) -> None:
    """Refuses targets that the likeliest pieces do not give.

    Raises:
        ConfigError: for all but top_k, and top_k_tail at temperature 1.
    """
    if spec.kind not in ("top_k", "top_k_tail"):
        raise ConfigError(
            f"{spec.kind} targets need the teacher's whole distribution, and a server gives only "
            "its likeliest pieces: record with --kind top_k_tail (or top_k) and a --k that it gives"
        )
    if spec.kind == "top_k_tail" and spec.temperature != 1.0:
        raise ConfigError(
            f"temperature = {spec.temperature:g}: how much mass the pieces that a server does not "
            "name have at another temperature than 1 cannot be known: use 1, or --kind top_k"
        )


_AS_IDS = "return_tokens_as_token_ids"


@dataclasses.dataclass(frozen=True)
class _Dialect:
    """How a server is asked, and where in its answers the likeliest pieces are."""

    settings: dict[str, Any]
    by_id: bool = False

    def places(self, choice: dict[str, Any], length: int) -> list[dict[str, float]]:
        """Log-probabilities by the server's names at each place, the first empty.

        Empty when the answer holds none. Values of the wrong kind count as none.
        """
        if self.by_id:
            given = choice.get("prompt_logprobs")
            extra = 0
        else:
            given = (choice.get("logprobs") or {}).get("top_logprobs")
            extra = int(self.settings["max_tokens"])  # what was generated comes last
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
        """What the server calls each token of a prompt; None where it does not say."""
        if self.by_id:
            given = choice.get("prompt_logprobs") or []
            found: list[str | None] = [None]
            for token, entries in zip(prompt[1:], given[1:], strict=True):
                entry = entries.get(str(token))
                if not isinstance(entry, dict):
                    return [None, *(["\u2205"] * (len(prompt) - 1))]  # it took it for another id
                found.append(entry.get("decoded_token"))
            return found
        tokens = [str(t) for t in (choice.get("logprobs") or {}).get("tokens") or []]
        tokens = tokens[: len(prompt)]
        if len(tokens) != len(prompt):
            return [None] * len(prompt)
        return [None if t.startswith(_ID) else t for t in tokens]


def _logprob(value: Any) -> Any:
    return value["logprob"] if isinstance(value, dict) else value


def _probes(dataset: Dataset) -> list[list[int]]:
    """Prompts on which ids are compared: documents, and texts that tokenizers disagree about."""
    texts = [text for text in probe_texts(dataset) if text]
    chosen = texts[:: max(1, len(texts) // _PROBES)] + texts[-_PROBES:]
    encoded = [dataset.tokenizer.encode(text, bos=True)[:_LONGEST_PROBE] for text in chosen]
    return [ids for ids in encoded if len(ids) > 1]


def _prompts(batch: Batch, row: int, filler: int) -> list[list[int]]:
    """A row's documents, each with the token that follows it (any, where none counts)."""
    segments_T = batch.doc_ids_BT[row]
    values, counts = segments_T.unique_consecutive(return_counts=True)
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
    """Ids that show as a text. Bytes count only where no other piece has that text."""
    found: dict[str, tuple[int, ...]] = {}
    last = range(FIRST_BYTE_ID, FIRST_LEARNED_ID)
    others = [i for i in range(tokenizer.vocab_size) if i not in last]
    for i in [*others, *last]:
        text = tokenizer.decode([i], control=True)
        if i not in last or text not in found or found[text][0] in last:
            found[text] = (*found.get(text, ()), i)
    return found
