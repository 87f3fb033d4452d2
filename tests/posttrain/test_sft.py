"""The kind "sft"."""

from collections.abc import Callable
from typing import Any

import pytest

from gemmule.data.dataset import Dataset
from gemmule.errors import DataError
from gemmule.posttrain.recipes import sft
from gemmule.train.config import RunConfig

Settings = Callable[..., dict[str, Any]]


def test_text_is_refused(tiny: Settings) -> None:
    import gemmule.posttrain.kinds  # noqa: F401

    config = RunConfig.parse(tiny(objective={"kind": "sft"}))
    with pytest.raises(DataError, match="holds text, not conversations"):
        sft.build(config, Dataset.open(config.data.path))
