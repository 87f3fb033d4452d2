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

from gemmule.errors import ConfigError, GemmuleError
from gemmule.serve.grammar.limits import GrammarLimits
from gemmule.serve.grammar.spec import GrammarSpec, short_reason
from gemmule.serve.grammar.vocabulary import GrammarVocabulary

_WORKER = Path(__file__).with_name("trial_worker.py")
# Time on the clock for a second of processor time, on a machine that has other things to do.
_PATIENCE = 10


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
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._start()
        if self._stopping:
            raise TrialError("no grammar is compiled any more")
        job = json.dumps({"kind": spec.kind, "source": spec.source})
        reply = self._ask(self._process, job)
        if reply is None:
            process = self._process
            self.close()
            if process.returncode > 0:
                raise TrialError("the process that compiles grammars has failed")
            raise ConfigError(f"the {spec.noun} cannot be used: {self._cause(process.returncode)}")
        if "error" in reply:
            raise ConfigError(f"the {spec.noun} cannot be used: {short_reason(reply['error'])}")
        return reply["grammar"]

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

    def _cause(self, code: int) -> str:
        """What was too much when the process ended."""
        limits = self._limits
        if code == -getattr(signal, "SIGABRT", 0):
            return f"it takes more than {limits.compile_bytes >> 20} MiB; make it smaller"
        if code == -getattr(signal, "SIGSEGV", 0):
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
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(setup) + "\n")
            process.stdin.flush()
        except OSError as error:
            process.kill()
            raise TrialError("the process that compiles grammars ended at once") from error
        return process

    def _ask(self, process: "subprocess.Popen[str]", job: str) -> dict[str, str] | None:
        """The reply to a job; None if the process has ended instead."""
        assert process.stdin is not None
        assert process.stdout is not None
        alarm = threading.Timer(self._limits.compile_seconds * _PATIENCE, process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            process.stdin.write(job + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            reply: dict[str, str] | None = json.loads(line) if line.endswith("\n") else None
            return reply
        except OSError:
            return None
        finally:
            alarm.cancel()
