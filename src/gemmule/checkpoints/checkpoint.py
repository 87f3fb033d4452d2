"""An open checkpoint of any format: its config, its tokenizer, and its tensors, still on disk."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gemmule.checkpoints.stored_tensor import (
    HeldTensor,
    StoredTensor,
    few,
    parse_dtype,
    side_by_side,
    tensor_bytes,
)
from gemmule.errors import CheckpointError, ConfigError, MissingTokenizerError
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
SCORE = "score.weight"  # the head of a reward model


@dataclass
class Checkpoint:
    """An open checkpoint; used in a with statement, which closes its files at the end.

    Attributes:
        path: the folder or file of the checkpoint.
        format: "hf", "adapter", "quantized", "gguf", "gemma_pytorch", "torch", "npz", "orbax" or
            "memory".
        config: the model's config.
        tensors: weights by our parameter names, possibly with an untied `lm_head.weight`.
        read_tokenizer: reads the checkpoint's tokenizer; raises TokenizerError.
        files: the files that hold the weights.
        notes: remarks for the user about how the checkpoint was read.
        quantized: formats, bits per weight and measured loss of a model packed by gemmule.
        adapter: method, ranks, base, size and modules of an adapter that is merged into its base.
        score: head of a reward model, [1, D]; None for a language model.
    """

    path: Path
    format: str
    config: GemmaConfig
    tensors: Mapping[str, StoredTensor]
    read_tokenizer: Callable[[], Tokenizer]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    stack: ExitStack = field(default_factory=ExitStack)
    quantized: Mapping[str, Any] | None = None
    adapter: Mapping[str, Any] | None = None
    score: StoredTensor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read at the first access."""
        return self.read_tokenizer()

    @property
    def tokenizer_if_any(self) -> Tokenizer | MissingTokenizerError:
        """The tokenizer, or the error that says that there is none; a broken one raises."""
        try:
            return self.tokenizer
        except MissingTokenizerError as e:
            return e

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds every stored matrix exactly; GGUF stores norms in a wider one."""
        matrices = {tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) > 1}
        return reduce(torch.promote_types, matrices or {torch.float32})

    @property
    def load_dtype(self) -> torch.dtype:
        """The dtype of `load` by default: not float16, which Gemma 2's activations overflow."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype

    @property
    def stored_as(self) -> dict[str, int]:
        """The number of weights in each encoding, the most common first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.stored_as] = counts.get(tensor.stored_as, 0) + tensor.numel
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def weights(self) -> Iterator[StoredTensor]:
        """The tensors of all parameters in the model's order, checked against `config`.

        Raises:
            CheckpointError: when one is missing, unexpected or of another shape.
        """
        return (self.tensors[name] for name in self._empty_model().state_dict())

    def load(
        self, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu"
    ) -> Gemma:
        """Reads each weight directly into its final dtype and device.

        Args:
            dtype: dtype of the weights in memory; None: as stored, except that float16 and
                quantized weights become float32.
            device: device of the weights.

        Raises:
            CheckpointError: for tensors that are missing, unexpected, of another shape than in the
                config, or hold NaN or Inf.
            ConfigError: for an impossible dtype or device.
        """
        dtype, device = parse_dtype(dtype), parse_device(device)
        dtype = dtype or self.load_dtype
        model = self._empty_model()
        names = list(model.state_dict())
        with _thread_pool() as pool:
            copied = pool.map(lambda name: self.tensors[name].copy(dtype, device), names)
            for name, fresh in zip(names, copied, strict=True):
                owner, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(owner), attribute, nn.Parameter(fresh))
        self.check_head()
        return model

    def _empty_model(self) -> Gemma:
        """The model on the meta device, after checking that the tensors fit it."""
        layers = {name.split(".")[1] for name in self.tensors if name.startswith("layers.")}
        if not layers:
            raise CheckpointError(
                f"{self.path}: the weights have other names than a Gemma 2's: "
                f"{few(list(self.tensors))}; expected layers.0.mlp.up_proj.weight and so on"
            )
        if len(layers) != self.config.num_hidden_layers:  # before building an absurd number
            raise CheckpointError(
                f"{self.path}: the config says {self.config.num_hidden_layers} layers, the "
                f"weights hold {len(layers)}"
            )
        try:
            with torch.device("meta"), Undrawn():
                model = Gemma(self.config)
        except (RuntimeError, OverflowError, TypeError) as e:
            raise CheckpointError(
                f"{self.path}: the config describes an impossible model: {str(e).splitlines()[0]}"
            ) from None
        self._check_names(model.state_dict())
        return model

    def _check_names(self, wanted: Mapping[str, torch.Tensor]) -> None:
        missing = [name for name in wanted if name not in self.tensors]
        unexpected = [name for name in self.tensors if name not in wanted and name != HEAD]
        if missing or unexpected:
            parts = [f"lack {few(missing)}"] if missing else []
            parts += [f"hold unexpected {few(unexpected)}"] if unexpected else []
            raise CheckpointError(f"{self.path}: the weights {' and '.join(parts)}")
        wrong = [
            f"{name} {list(self.tensors[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if self.tensors[name].shape != tuple(tensor.shape)
        ]
        if wrong:
            raise CheckpointError(f"{self.path}: shapes differ from the config: {few(wrong)}")

    def check_head(self, *, whole: bool = True) -> None:
        """Checks that a stored head is the embedding, by comparing them row by row.

        Args:
            whole: compare all rows; else the first chunk, in which a trained head differs too.

        Raises:
            CheckpointError: when it is not: only a tied head can be run.
        """
        head, embedding = self.tensors.get(HEAD), self.tensors.get(EMBEDDING)
        if head is None or embedding is None:  # a missing embedding has its own message
            return
        if head.shape != embedding.shape or not all(
            torch.equal(*_same_dtype(ours, theirs))
            for ours, theirs in islice(side_by_side(head, embedding), None if whole else 1)
        ):
            raise CheckpointError(
                f"{self.path}: lm_head.weight differs from the embedding; only a tied head can be "
                "loaded. transformers can run this model"
            )


def _same_dtype(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def known(tokenizer: Tokenizer | MissingTokenizerError) -> Tokenizer | None:
    """A tokenizer, or None for the error that says that there is none."""
    return tokenizer if isinstance(tokenizer, Tokenizer) else None


class Undrawn(TorchFunctionMode):
    """Skips the random initialization of modules, which takes seconds even on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in (nn.init.kaiming_uniform_, nn.init.normal_):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _thread_pool() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as torch uses, with torch limited to one thread in each.

    Threads that share an operation wait for one another at its end. If another program occupies a
    core, that makes loading slower than a single thread would be.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def of_model(model: Gemma, tokenizer: Tokenizer) -> Checkpoint:
    """Wraps a model in memory as a checkpoint; a reward model has a parameter named SCORE."""
    held = {name: HeldTensor(name, tensor) for name, tensor in model.state_dict().items()}
    score = held.pop(SCORE, None)
    return Checkpoint(Path(), "memory", model.config, held, lambda: tokenizer, score=score)


def parse_device(device: torch.device | str) -> torch.device:
    """Parses a device and checks that it can be used.

    Raises:
        ConfigError: for an unknown name, or a device that this machine or torch build lacks.
    """
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0]
        raise ConfigError(f"device {str(device)!r} cannot be used here: {reason}") from None
    return parsed


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the sorted names, shapes, dtypes and bytes of `model`'s weights, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def stored_fingerprint(checkpoint: Checkpoint) -> str:
    """`weights_fingerprint` of a checkpoint loaded in fp32, as runs load it; reads it by rows."""
    digest, dtype = hashlib.sha256(), torch.float32
    for tensor in sorted(checkpoint.weights(), key=lambda tensor: tensor.name):
        digest.update(f"{tensor.name} {dtype} {list(tensor.shape)}\n".encode())
        for rows in tensor.rows_as(dtype):
            digest.update(tensor_bytes(rows))
    return digest.hexdigest()
