"""What a verifier reads of a prompt's record, the fields next to its messages."""

from collections.abc import Mapping
from typing import Any

from gemmule.errors import DataError


def expected(record: Mapping[str, Any], field: str) -> Any:
    """A field that the verifier cannot do without.

    Raises:
        DataError: if the record does not have it.
    """
    if record.get(field) is None:
        raise DataError(
            f"a prompt's record has no {field!r}, which its reward needs; it has "
            f"{', '.join(map(repr, record)) or 'nothing'}: add the field to every prompt, or "
            "choose another reward"
        )
    return record[field]
