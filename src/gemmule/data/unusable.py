"""Records that cannot be used, as the readers of each format report them."""

from enum import Enum

MAX_RECORD_BYTES = 64 * 1024 * 1024  # of a line, JSON value, or row of CSV


class Unusable(Enum):
    """Stands for a record that cannot be used; its value is the reason, as it is counted."""

    MALFORMED = "malformed JSON line"
    TOO_LARGE = f"record larger than {MAX_RECORD_BYTES >> 20} MB"
    WRONG_LENGTH = "CSV row with another number of columns"
    NOT_UTF8 = "row that is not UTF-8"


class MalformedError(ValueError):
    """A file is not of its format, or ends too early; the message says what is wrong."""
