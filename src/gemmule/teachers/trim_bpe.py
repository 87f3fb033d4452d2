"""`gemmule tokenizer trim` for tokenizers of other families than Gemma's."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.console import Progress
from gemmule.data.sources import find_source
from gemmule.data.text_trim import WHOLE, Extent, Stage, TextCounts, compare, documents_of
from gemmule.errors import TokenizerError, first_line
from gemmule.model import tokenizer_json
from gemmule.model.bpe_trim import BpeFile, TrimmedBpe
from gemmule.model.tokenizer_files import TOKENIZER_CONFIG, read_object

FORMER_IDS = "former_ids.json"  # the former id of each token, by new id
_COPIED = ("special_tokens_map.json", "chat_template.jinja")
_BY_ID = "added_tokens_decoder"  # in tokenizer_config.json


def trim_bpe(
    file: BpeFile,
    text: Path | None,
    extent: Extent = WHOLE,
    *,
    field: str | None = None,
    progress: Progress = lambda *_: None,
    stage: Stage = lambda _: None,
) -> tuple[TrimmedBpe, dict[str, int]]:
    """Trims a tokenizer to a text; arguments and errors as of data.text_trim.trim_to_text.

    Returns:
        The trimmed tokenizer, and how the text is segmented before and after.
    """
    corpus = find_source(text, field)
    full = _Encoder(file.content)
    stage(f"counting the tokens of {corpus.name}")
    counted = TextCounts(file.size, corpus.name)
    for document in documents_of(corpus, progress):
        counted.add(full(document))
    trimmed = file.trim(counted.counts_V, size=extent.size, coverage=extent.coverage)
    stage("comparing the segmentation")
    small = _Encoder(trimmed.content)
    return trimmed, compare(corpus, full, small, trimmed, progress=progress)


class _Encoder:
    def __init__(self, content: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(content))
        except Exception as e:  # the library raises this very class
            raise TokenizerError(
                f"the tokenizers library cannot read this tokenizer ({first_line(e)})"
            ) from None

    def __call__(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def save(trimmed: TrimmedBpe, folder: Path | None, out: Path) -> None:
    """Writes a trimmed tokenizer, with what the full one's folder says about it.

    Args:
        trimmed: the trimmed tokenizer.
        folder: folder of the full one; None: it has none.
        out: folder to write.
    """
    text = json.dumps(trimmed.content, ensure_ascii=False, indent=1)
    files.write_text(out / tokenizer_json.FILE, text)
    files.write_json(out / FORMER_IDS, trimmed.kept_K.tolist())
    if folder is None:
        return
    for name in _COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if (folder / TOKENIZER_CONFIG).is_file():
        config = read_object(folder / TOKENIZER_CONFIG)
        if isinstance(config.get(_BY_ID), dict):
            new_id = {str(old): str(new) for new, old in enumerate(trimmed.kept_K.tolist())}
            config[_BY_ID] = {new_id[i]: t for i, t in config[_BY_ID].items() if i in new_id}
        files.write_json(out / TOKENIZER_CONFIG, config)
