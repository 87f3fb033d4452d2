"""A user's own reward: a Python function, named as module:function."""

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gemmule.errors import ConfigError

_FORM = (
    "name a function of two arguments, the answer's text and the prompt's record, as "
    "module:function or path/to/file.py:function"
)


class UserFunction:
    """Calls a user's function, and checks what it returns.

    Attributes:
        name: as the user named it.
    """

    def __init__(self, name: str) -> None:
        """Imports the function.

        Args:
            name: "module:function" or "path/to/file.py:function". The current folder is searched
                for modules first, as `python -m` does.

        Raises:
            ConfigError: if there is no such module or function, the module's own code fails, or the
                function does not take two arguments.
        """
        self.name = name
        module_name, _, attribute = name.rpartition(":")
        if not module_name or not attribute:
            raise ConfigError(f"the reward {name!r} is neither a known one nor a function: {_FORM}")
        self._module = _import(module_name, name)
        function = getattr(self._module, attribute, None)
        if not callable(function):
            functions = [n for n, v in vars(self._module).items() if inspect.isfunction(v)]
            raise ConfigError(
                f"reward {name!r}: {module_name} has no function {attribute!r}; it has "
                f"{', '.join(functions) or 'none'}"
            )
        try:
            inspect.signature(function).bind("", {})
        except TypeError as e:
            raise ConfigError(f"reward {name!r} cannot be called: {e}; {_FORM}") from None
        self._function: Callable[[str, Mapping[str, Any]], float] = function

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the module's source; "" where it has no file.

        A function that the module has imported counts with its own module's source as well. What
        either imports besides is not looked at.
        """
        owner = sys.modules.get(getattr(self._function, "__module__", ""), self._module)
        files = {getattr(module, "__file__", None) for module in (self._module, owner)} - {None}
        content = b"".join(Path(str(file)).read_bytes() for file in sorted(files, key=str))
        return hashlib.sha256(content).hexdigest() if files else ""

    def __call__(self, answer: str, record: Mapping[str, Any]) -> float:
        """The function's value.

        Raises:
            ConfigError: if the function raises, or returns something that is not a finite number.
        """
        try:
            value = self._function(answer, record)
        except Exception as e:
            place = traceback.extract_tb(e.__traceback__)[-1]
            raise ConfigError(
                f"reward {self.name!r} raised {type(e).__name__}: {e} ({place.filename}, line "
                f"{place.lineno}) for the answer {answer[:200]!r}"
            ) from e
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(
                f"reward {self.name!r} returned {value!r} for the answer {answer[:200]!r}; it must "
                "return a finite number"
            )
        return float(value)


def _import(module_name: str, name: str) -> ModuleType:
    try:
        if module_name.endswith(".py"):
            return _from_file(Path(module_name))
        sys.path.insert(0, "")
        try:
            return importlib.import_module(module_name)
        finally:
            sys.path.remove("")
    except FileNotFoundError:
        raise ConfigError(f"reward {name!r}: there is no file {module_name}; {_FORM}") from None
    except ModuleNotFoundError as e:
        raise ConfigError(f"reward {name!r}: there is no module {e.name!r}; {_FORM}") from None
    except Exception as e:
        raise ConfigError(
            f"reward {name!r}: importing {module_name} failed with {type(e).__name__}: {e}"
        ) from e


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gemmule_reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # a dataclass in the file looks for its module there
    spec.loader.exec_module(module)
    return module
