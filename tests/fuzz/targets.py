"""What is fuzzed: each parser with sound inputs, the damage that suits it, and what must hold.

An input may be refused with a UserError whose message a terminal can show, or load as a model that
is finite and of the declared shape. Anything else is a bug.
"""

import shutil
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import corpora
import fuzz_seeds
import tokenizers
import torch
from mutate import Mutation, pack, unpack
from mutate_gguf import GGUF
from mutate_json import JSON, SAFETENSORS
from mutate_npz import NPZ
from mutate_pickle import PICKLE
from mutate_proto import PROTO
from mutate_text import TEXT
from mutate_zip import ZIP
from safetensors.torch import save

import gemmule.checkpoints.adapters.reader
import gemmule.checkpoints.jax.reader  # noqa: F401 (readers are imported late, and here in time)
from gemmule.checkpoints.describe import describe
from gemmule.checkpoints.load import open_checkpoint
from gemmule.errors import TokenizerError, UserError
from gemmule.model.spm_train import FIRST_TEXT_ID
from gemmule.model.stream_decoder import StreamDecoder
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.train.state import SafetensorsStates

LONGEST_MESSAGE = 2000  # characters
_SAMPLE = "The sea,  said <end_of_turn> 42\n\u2581\0é"
_ROLES = {"u": "user", "a": "assistant", "m": "model", "s": "system"}


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: as on the command line.
        files: what an input consists of, by name in the folder that is read.
        mutations: of each of these files.
        seeds: sound inputs.
        check: reads the folder; raises UserError for what is refused.
        fixed: files that every input has next to it.
    """

    name: str
    files: tuple[str, ...]
    mutations: tuple[Sequence[Mutation], ...]
    seeds: list[bytes]
    check: Callable[[Path], None]
    fixed: dict[str, bytes] = field(default_factory=dict)

    def prepare(self, folder: Path) -> None:
        """Lays out the fixed files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.fixed.items():
            (folder / name).write_bytes(data)

    def run(self, folder: Path, data: bytes) -> bool:
        """Reads an input in a prepared folder; True when it loaded, False when it was refused."""
        for name, part in zip(self.files, unpack(data, len(self.files)), strict=True):
            path = folder / name
            path.unlink(missing_ok=True)  # never changed in place: it may still be mapped
            if part is not None:
                path.write_bytes(part)
        try:
            self.check(folder)
        except UserError as e:
            check_message(str(e))
            return False
        return True


def check_message(message: str) -> None:
    """What a terminal can show, and a person will read."""
    assert message, "an error without a message"
    assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters"
    odd = [c for c in message if not c.isprintable() and c != "\n"]
    assert not odd, f"a message that a terminal cannot show: {odd[0]!r} in {message[:300]!r}"


def check_model(folder: Path) -> None:
    """Opens, loads and describes the model in a folder."""
    with open_checkpoint(folder) as checkpoint:
        model = checkpoint.load()
        assert model.config == checkpoint.config
        for name, parameter in model.named_parameters():
            assert parameter.isfinite().all(), name
            assert parameter.shape == checkpoint.tensors[name].shape, name
    described = describe(folder)
    assert described["parameters"]["total"] == model.config.parameters
    assert str(described["path"])


def check_model_and_tokenizer(folder: Path) -> None:
    """The same, where the tokenizer is part of the input; either may be refused alone."""
    with open_checkpoint(folder) as checkpoint:
        refused = None
        try:
            use_tokenizer(checkpoint.tokenizer)
        except TokenizerError as e:
            refused = e
    check_model(folder)
    if refused:
        raise refused


def use_tokenizer(tokenizer: Tokenizer) -> None:
    """Whatever a tokenizer was made of, text comes back from it and never becomes control ids."""
    ids = tokenizer.encode(_SAMPLE)
    assert all(FIRST_TEXT_ID <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == _SAMPLE
    assert len(tokenizer.fingerprint) == 64
    assert len(tokenizer.token_bytes()) == tokenizer.vocab_size
    tokenizer.render_chat([{"role": "user", "content": _SAMPLE}])


class _OneState(SafetensorsStates):
    """States of which there is one, in the folder itself."""

    def path(self, step: int) -> Path:
        return self.folder


def check_training_state(folder: Path) -> None:
    """A state that loads is one that a training can go on from."""
    model, optimizers = fuzz_seeds.small_training()
    _OneState(folder, 1).load(3, model, optimizers)
    model(torch.ones(1, 3)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def check_tokenizer(folder: Path) -> None:
    """A tokenizer.model is read, used, and saved in the form of Hugging Face's libraries."""
    tokenizer = Tokenizer.load(folder)
    use_tokenizer(tokenizer)
    saved = folder / "saved"
    saved.mkdir(exist_ok=True)
    tokenizer.save(saved)
    assert Tokenizer.load(saved).fingerprint == tokenizer.fingerprint


def check_tokenizer_json(folder: Path) -> None:
    """What loads gives the tokenizers library's ids, if that loads it, and is saved unchanged."""
    tokenizer = Tokenizer.load(folder)
    control = {token.id for token in tokenizer.added_tokens if token.special}
    ids = tokenizer.encode(_SAMPLE)
    assert control.isdisjoint(ids)
    assert max(ids, default=0) < tokenizer.vocab_size
    if all(token.plain for token in tokenizer.added_tokens):
        assert tokenizer.decode(ids) == _SAMPLE
    saved = folder / "saved"
    shutil.rmtree(saved, ignore_errors=True)
    tokenizer.save(saved)
    again = Tokenizer.load(saved)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.chat_format == tokenizer.chat_format
    assert again.encode(_SAMPLE, control=True) == tokenizer.encode(_SAMPLE, control=True)
    library = _library(folder / "tokenizer.json")
    if library is not None:
        alone = Tokenizer.load(folder / "tokenizer.json")
        text = _SAMPLE.replace("\u2581", "")
        expected = library.encode(text, add_special_tokens=False).ids
        assert alone.encode(text, control=True) == expected


def _library(file: Path) -> tokenizers.Tokenizer | None:
    try:
        library = tokenizers.Tokenizer.from_str(file.read_text())
        library.no_truncation()
        library.no_padding()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # its panics are not Exceptions
        return None
    return library


def text_check(tokenizer: Tokenizer) -> Callable[[Path], None]:
    """Text to ids and back, and conversations: U+001E parts messages, whose first letter is a role.

    Bytes that are no UTF-8 become lone surrogates, which must be refused.
    """

    def check(folder: Path) -> None:
        text, chat = (
            path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""
            for path in (folder / "text", folder / "chat")
        )
        ids = tokenizer.encode(text)
        assert all(i >= FIRST_TEXT_ID for i in ids)
        assert tokenizer.decode(ids) == text
        stream = StreamDecoder(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.flush() == text
        with_control = tokenizer.encode(text, bos=True, control=True)
        assert tokenizer.decode(with_control[1:], control=True) == text
        messages = [
            {"role": _ROLES.get(part[:1], part[:1]), "content": part[1:]}
            for part in chat.split("\x1e")
        ]
        prompt = len(messages) % 3 != 0
        ids = tokenizer.render_chat(messages, prompt)
        turns = sum(message["role"] != "system" for message in messages)
        assert ids.count(tokenizer.start_of_turn_id) == turns + prompt
        assert ids.count(tokenizer.end_of_turn_id) == turns
        assert sum(i < FIRST_TEXT_ID for i in ids) == 1 + 2 * turns + prompt

    return check


def build() -> dict[str, Target]:
    """Every target by name; takes a second or two."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([Path(textwrap.__file__).read_text()], 512)
    work = Path(tempfile.mkdtemp(prefix="gemmule-seeds-"))
    try:
        return {target.name: target for target in _targets(fuzz_seeds.Maker(work, tokenizer))}
    finally:
        shutil.rmtree(work)


def _targets(make: "fuzz_seeds.Maker") -> list[Target]:
    beside = {"tokenizer.model": make.tokenizer_model}
    config = {"config.json": make.config_json}
    shards = ("a.safetensors", "b.safetensors")
    ckpts = ("a.ckpt", "b.ckpt")
    adapter_config, adapter_bin = make.adapter_bin()
    base = beside | config | {"model.safetensors": make.weights}  # in the adapter's own folder
    bins, parts = ("a.bin", "b.bin"), ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    index, ckpt_index = "model.safetensors.index.json", "pytorch_model.bin.index.json"
    words = (b"the sea, said the captain", "<bos>é \u2581😈".encode(), b"")
    chats = (b"uhello", b"sbe kind\x1euhello\x1eahi\x1eubye", b"u\x1em<end_of_turn>\x1eu ")
    return [
        Target(
            "safetensors", ("model.safetensors",), (SAFETENSORS,), make.safetensors(), check_model,
            beside | config,
        ),
        Target(
            "safetensors_sharded", (index, *shards), (JSON, SAFETENSORS, SAFETENSORS),
            make.safetensors_sharded(index, shards), check_model, beside | config,
        ),
        Target(
            "safetensors_index", (index,), (JSON,), make.indexes(shards), check_model,
            beside | config | make.halves(shards, save),
        ),
        Target(
            "torch_index", (ckpt_index,), (JSON,), make.indexes(bins), check_model,
            beside | config | make.halves(bins, fuzz_seeds.torch_saved),
        ),
        Target(
            "config", ("config.json",), (JSON,), make.configs(), check_model,
            beside | {"model.safetensors": make.weights},
        ),
        Target(
            "adapter", ("adapter_config.json", "adapter_model.safetensors"), (JSON, SAFETENSORS),
            make.adapters(), check_model, base,
        ),
        Target(
            "adapter_bin", ("adapter_model.bin",), (PICKLE * 2 + ZIP,), adapter_bin, check_model,
            base | {"adapter_config.json": adapter_config},
        ),
        Target(
            "ckpt", ("model.ckpt", "config.json"), (PICKLE * 2 + ZIP, ()), make.ckpt(),
            check_model, beside,
        ),
        Target(
            "ckpt_sharded", (ckpt_index, *ckpts), (JSON, PICKLE + ZIP, PICKLE + ZIP),
            make.ckpt_sharded(ckpt_index, ckpts), check_model, beside | config,
        ),
        Target("npz", ("model.npz",), (NPZ * 2 + ZIP,), make.npz(), check_model, beside | config),
        Target("gguf", ("model.gguf",), (GGUF,), make.gguf(), check_model_and_tokenizer),
        Target("gguf_split", parts, (GGUF, GGUF), make.gguf_split(), check_model_and_tokenizer),
        Target(
            "any_file", ("x",), ((),), make.any_file(), lambda folder: check_model(folder / "x"),
            beside | config,
        ),
        Target(
            "training_state", ("state.safetensors", "state.json"), (SAFETENSORS, JSON),
            make.training_state(), check_training_state,
        ),
        Target("tokenizer", ("tokenizer.model",), (PROTO,), make.tokenizers(), check_tokenizer),
        Target(
            "tokenizer_json", ("tokenizer.json", "tokenizer_config.json", "generation_config.json"),
            (JSON * 3, JSON, JSON), make.tokenizer_jsons(), check_tokenizer_json,
        ),
        Target(
            "text", ("text", "chat"), (TEXT, TEXT),
            [pack(pair) for pair in zip(words, chats, strict=True)], text_check(make.tokenizer),
        ),
        *(Target(*corpus, corpora.check_corpus) for corpus in corpora.inputs()),
    ]  # fmt: skip
