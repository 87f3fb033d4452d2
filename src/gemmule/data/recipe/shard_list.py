"""Which documents make which shard: it follows from their sizes and splits alone.

Shards are cut where `gemmule data` cuts them, by characters.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule.data.corpus import SPLITS
from gemmule.data.prepare import shard_bytes
from gemmule.data.recipe.chunks import Chunk


def shard_list(chunks: Sequence[Chunk], split_of: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """The list of shards.

    Args:
        chunks: all chunks.
        split_of: index of each document's split; others are left out.

    Returns:
        "shard_bytes", and "shards": for each its split, its index within the split, the numbers of
        its first and last document, and how many documents of the split lie between, and bytes.
    """
    total = 0
    for chunk in chunks:
        total += int(chunk.sizes()[split_of[chunk.slice] < len(SPLITS)].sum())
    limit = shard_bytes(total)
    shards: list[dict[str, Any]] = []
    open_shards: dict[int, dict[str, Any]] = {}
    counts, characters = [0] * len(SPLITS), [0] * len(SPLITS)
    for chunk in chunks:
        lengths, sizes = chunk.array("characters").tolist(), chunk.sizes().tolist()
        rows = zip(lengths, sizes, split_of[chunk.slice].tolist(), strict=True)
        for number, (length, size, split) in enumerate(rows, chunk.first):
            if split >= len(SPLITS):
                continue
            shard = open_shards.get(split)
            if shard is None:
                about = {"split": SPLITS[split], "index": counts[split], "first": number}
                shard = open_shards[split] = {**about, "last": number, "documents": 0, "bytes": 0}
                counts[split], characters[split] = counts[split] + 1, 0
            shard["last"] = number
            shard["documents"] += 1
            shard["bytes"] += size
            characters[split] += length
            if characters[split] >= limit:
                shards.append(open_shards.pop(split))
    shards += [open_shards[split] for split in sorted(open_shards)]
    return {"shard_bytes": limit, "shards": shards}
