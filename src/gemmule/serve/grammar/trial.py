"""Grammars are tried in another process before this one compiles them.

llguidance has limits of its own, but some grammars overflow its stack, take all memory, or run for
minutes. A process that does one of these ends, and its grammar is refused.
"""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from gemmule.errors import ConfigError, GemmuleError
from gemmule.serve.grammar.limits import GrammarLimits
from gemmule.serve.grammar.spec import GrammarSpec, short_reason
from gemmule.serve.grammar.vocabulary import GrammarVocabulary

_NO_MEMORY = -getattr(signal, "SIGABRT", 0)
_TOO_DEEP = -getattr(signal, "SIGSEGV", 0)
_WORKER = Path(__file__).with_name("trial_worker.py")
# Time on the clock for a second of processor time, on a machine that has other things to do.
_PATIENCE = 10
_START_SECONDS = 120.0  # the same for the start, which takes a second for a large vocabulary


class TrialError(GemmuleError):
    """The process that tries grammars could not be used."""


class TrialProcess:
    """A process that tries one grammar after the other; it is started when it is needed."""

    def __init__(self, vocabulary: GrammarVocabulary, limits: GrammarLimits) -> None:
        self._vocabulary, self._limits = vocabulary, limits
        self._process: subprocess.Popen[str] | None = None
        self._stopping = False

    def run(self, spec: GrammarSpec) -> str:
        """Tries a grammar.

        Returns:
            The grammar in llguidance's form.

        Raises:
            ConfigError: if it does not compile, or costs too much.
            TrialError: if the process cannot be used.
        """
        used = self._process is not None
        reply, code = self._try(spec)
        if code == _NO_MEMORY and used:  # earlier grammars may have left too little
            reply, code = self._try(spec)
        if reply is None:
            if code > 0:
                raise TrialError("the process that compiles grammars has failed")
            raise ConfigError(f"the {spec.noun} cannot be used: {self._cause(code)}")
        if "error" in reply:
            raise ConfigError(f"the {spec.noun} cannot be used: {short_reason(reply['error'])}")
        return str(reply["grammar"])

    def stop(self) -> None:
        """Ends the process, whatever another thread waits for from it, and starts no other."""
        self._stopping = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process and gives its pipes back; no other thread may use it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _try(self, spec: GrammarSpec) -> tuple[dict[str, Any] | None, int]:
        """The reply of the process, or None and its exit status if it ended instead."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._start()
        if self._stopping:
            raise TrialError("no grammar is compiled any more")
        process = self._process
        job = json.dumps({"kind": spec.kind, "source": spec.source})
        reply = _ask(process, job, self._limits.compile_seconds * _PATIENCE)
        if reply is None:
            self.close()
        return reply, process.returncode or 0

    def _cause(self, code: int) -> str:
        """What was too much when the process ended."""
        limits = self._limits
        if code == _NO_MEMORY:
            return f"it takes more than {limits.compile_bytes >> 20} MiB; make it smaller"
        if code == _TOO_DEEP:
            return "its parts nest too deep, or refer to each other in too long a chain"
        return f"it takes more than {limits.compile_seconds:g} s; make it simpler"

    def _start(self) -> "subprocess.Popen[str]":
        import llguidance

        vocabulary, limits = self._vocabulary, self._limits
        packages = Path(str(llguidance.__file__)).parent.parent
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER), str(packages)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the server, which ends it
            )
        except OSError as error:
            raise TrialError(f"no process to compile grammars in: {error}") from error
        setup = {
            "stop_ids": vocabulary.stop_ids,
            "tokens": [token.hex() for token in vocabulary.tokens],
            "special": vocabulary.special,
            "limits": limits.of_parser(),
            "compile_bytes": limits.compile_bytes,
            "compile_seconds": limits.compile_seconds,
        }
        if _ask(process, json.dumps(setup), _START_SECONDS) is None:
            process.kill()
            process.communicate()
            raise TrialError("the process that compiles grammars does not start")
        return process


def _ask(process: "subprocess.Popen[str]", line: str, seconds: float) -> dict[str, Any] | None:
    """The reply to a line; None if the process has ended instead, or takes too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    alarm = threading.Timer(seconds, process.kill)
    alarm.daemon = True
    alarm.start()
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        reply: dict[str, Any] | None = json.loads(answer) if answer.endswith("\n") else None
        return reply
    except OSError:
        return None
    finally:
        alarm.cancel()
