"""docs/serving.md names every field that the routes take or refuse."""

from pathlib import Path

import pytest

from gemmule.serve.openai.schemas import ChatCompletionRequest, CompletionRequest, StreamOptions

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
REFUSED = {"include_obfuscation"}  # only false is accepted


@pytest.mark.parametrize("schema", [ChatCompletionRequest, CompletionRequest, StreamOptions])
def test_every_field_is_documented(
    schema: type[ChatCompletionRequest | CompletionRequest | StreamOptions],
) -> None:
    text = DOCS.read_text()
    names = {*schema.model_fields, *schema.refused} - REFUSED
    missing = [name for name in names if f"`{name}" not in text]
    assert not missing
