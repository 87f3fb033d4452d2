"""What can go wrong, as types.

GemmuleError                everything raised on purpose
├── UserError               the user can fix it: one clear message, exit code 2
│   ├── ConfigError         a setting that does not exist or is out of range
│   ├── DataError           a corpus that cannot be used as given
│   ├── TokenizerError      a tokenizer that is broken, or does not match its partner
│   │   └── MissingTokenizerError   there is none where one is needed
│   ├── CheckpointError     a model or training state that cannot be read
│   ├── OutputError         a place that cannot be written to
│   └── MissingExtraError   an optional package that is not installed
├── StreamError             standard output cannot be written to: exit code 1
├── TrainingError           training cannot continue (NaN or Inf): exit code 1
├── RankError               another process of the same run failed or is gone: exit code 1
├── EngineError             the inference engine cannot take or finish a request
│   ├── QueueFullError      as many requests wait as may: try again later
│   ├── EngineClosedError   it is shutting down, or has been shut down
│   └── EngineDeadError     its steps kept failing, so that it has given up
└── Interrupted             stopped by Ctrl-C, SIGTERM or SIGHUP, everything saved: exit code 130

A message says what we got, what is allowed, and what to do.
"""

_LONGEST = 1500  # characters of a message


class GemmuleError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class UserError(GemmuleError):
    """A mistake the user can fix; the command line prints its message without a traceback."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(_readable(message))


class ConfigError(UserError):
    """A setting that does not exist, or has a value that is not allowed."""


class DataError(UserError):
    """A corpus that cannot be used as given."""


class TokenizerError(UserError):
    """A tokenizer that cannot be read, or does not match the one it must agree with."""


class MissingTokenizerError(TokenizerError):
    """There is no tokenizer where text needs one."""


class CheckpointError(UserError):
    """A model or training state that cannot be read."""


class OutputError(UserError):
    """A file or folder that cannot be written to."""


class MissingExtraError(UserError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {package}: pip install "gemmule[{extra}]"')


class StreamError(GemmuleError):
    """Standard output cannot be written to, as on a full disk."""


class TrainingError(GemmuleError):
    """Training cannot continue."""


class RankError(GemmuleError):
    """Another process of the same run has failed, or cannot be reached.

    Attributes:
        gone: ranks that have vanished without a word.
    """

    gone: tuple[int, ...] = ()


class EngineError(GemmuleError):
    """The inference engine cannot take or finish a request."""


class QueueFullError(EngineError):
    """As many requests wait as may; the caller should try again later."""


class EngineClosedError(EngineError):
    """The engine is shutting down, or has been shut down."""


class EngineDeadError(EngineError):
    """Steps kept failing, so the engine has given up; `__cause__` is the last failure."""


class Interrupted(GemmuleError):
    """A clean stop on request; the message says how to resume."""

    exit_code = 130


def first_line(e: BaseException) -> str:
    """The first line of an error's message, or its type where there is none."""
    return (str(e) or type(e).__name__).strip().splitlines()[0]


def brief(value: object) -> str:
    """A value as a message quotes it, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def decoded(text: str) -> str:
    """`text` with file names' bytes that this locale could not decode, decoded if they are UTF-8.

    Python keeps such a byte as half of a surrogate pair.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # another half, which no file name gave
        return text


def _readable(message: str) -> str:
    """`message` as a terminal can show it: what it quotes may come from a hostile file."""
    shown = "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
        for c in _shortened(decoded(message))
    )
    return _shortened(shown)  # what could not be shown takes up to ten characters now


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST * 2 // 3]} … {text[-_LONGEST // 3 :]}"
