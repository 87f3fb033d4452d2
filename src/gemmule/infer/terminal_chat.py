"""The loop of `gemmule chat`: a conversation in a terminal, or lines from a pipe."""

import contextlib
import io
import re
import sys
from collections.abc import Callable

from rich.console import Console

from gemmule import files
from gemmule.config import nearest
from gemmule.errors import UserError
from gemmule.infer.conversation import ChatModel, Conversation
from gemmule.runtime import streams
from gemmule.runtime.signals import Interrupts, Terminated, chosen_interrupts

HELP = """\
/reset         forget the conversation
/system TEXT   start again with TEXT before the first message
/save FILE     write the conversation as JSON
/help          this list
/exit          leave (also Ctrl-D, or Ctrl-C at the prompt)
Ctrl-C stops an answer."""

_COMMANDS = ["/reset", "/system", "/save", "/help", "/exit", "/quit"]
_COMMAND = re.compile(r"/[a-z]+")  # a path such as /usr/bin is not a command
# A model can write any bytes; only line ends and tabs may act on the terminal.
_HARMLESS = {i: None for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


class TerminalChat:
    """Reads lines, streams answers and carries out the commands listed in `HELP`."""

    def __init__(
        self,
        model: ChatModel,
        *,
        system: str = "",
        name: str = "model",
        read_line: Callable[[], str] | None = None,
        out: Console | None = None,
    ) -> None:
        """Prepares a chat, which `run` starts.

        Args:
            model: answers the messages.
            system: text before the first user turn; empty for none.
            name: name of the model in the greeting, such as its path.
            read_line: returns the next line, or raises EOFError; by default from stdin.
            out: console for answers; by default stdout.
        """
        self._model = model
        self.conversation = Conversation(system)
        self._name = name
        self._interactive = read_line is None and sys.stdin.isatty()
        if not self._interactive and isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        self._out = out or Console(highlight=False)
        # In a pipe, stdout is for answers alone.
        self._notes = self._out if self._interactive or out else Console(stderr=True)
        self._read_line = read_line or (self._prompt if self._interactive else _read_pipe)
        self._interrupts = Interrupts()

    def run(self) -> None:
        """Chats until /exit, the end of the input, or Ctrl-C at the prompt.

        Ctrl-C raises at the prompt and while the model works, and nowhere between: whenever it is
        pressed, it stops an answer or leaves.
        """
        with chosen_interrupts() as self._interrupts:
            if self._interactive:
                about = f"{self._name} · {self._model.describe()}"
                self._note(f"{about}\n/help for commands, Ctrl-D to leave")
            while self._turn():
                pass

    def _turn(self) -> bool:
        """Reads a line and does what it says; returns whether to go on."""
        self._interrupts.forget()  # it was for an answer that has just ended
        try:
            with self._interrupts:
                line = self._read_line()
        except Terminated:
            raise
        except (EOFError, KeyboardInterrupt):
            if self._interactive:
                self._out.print()
            return False
        line = line.strip()
        try:
            if line and _COMMAND.fullmatch(line.split()[0]):
                return not self._obey(*line.partition(" ")[::2])
            if line:
                self._reply(line)
        except UserError as e:
            self._note(str(e))
        except Terminated:
            raise
        except KeyboardInterrupt:
            self._note("(stopped)")
        return True

    def _obey(self, command: str, rest: str) -> bool:
        """Carries out a command; returns whether to leave."""
        rest = rest.strip()
        if command in {"/exit", "/quit"}:
            return True
        if command == "/help":
            self._note(HELP)
        elif command == "/reset":
            self.conversation.messages = []
            self._note("the conversation is forgotten")
        elif command == "/system":
            self.conversation.messages = []
            self.conversation.system = rest
            self._note("set; a new conversation begins" if rest else "no system text any more")
        elif command == "/save" and rest:
            path = files.expand(rest)
            files.write_json(path, self.conversation.with_system())
            self._note(f"saved to {path}")
        elif command == "/save":
            self._note("name a file, as in /save chat.json")
        else:
            self._note(f"unknown command {command}; {nearest(command, _COMMANDS)}")
        return False

    def _reply(self, text: str) -> None:
        """Streams the answer to `text`; Ctrl-C keeps the part that has arrived."""
        before = self.conversation.messages
        try:
            with self._interrupts:  # a server may let it wait
                answer, dropped = self.conversation.ask(text, self._model.stream)
        except BaseException:
            self.conversation.messages = before
            raise
        if dropped:
            self._note(f"(the oldest {dropped} messages no longer fit into the context)")
        if self._interactive:
            self._out.print("[bold cyan]model>[/] ", end="")
        parts: list[str] = []
        stopped = False
        try:
            with contextlib.closing(answer):
                while not stopped:
                    with self._interrupts:
                        part = next(answer, None)
                    if part is None:
                        break
                    parts.append(part)
                    self._write(part)
                    stopped = self._interrupts.requested
        except Terminated:
            raise
        except KeyboardInterrupt:
            stopped = True
        except BaseException:
            self.conversation.answer("")
            raise
        written = "".join(parts)
        self.conversation.answer(written)
        self._write("\n")
        if stopped:
            self._note("(stopped)")
        elif not written.strip():
            self._note("(the model ended its turn without any text)")

    def _prompt(self) -> str:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (arrow keys and history in input())
        label = "you> "
        if self._out.color_system:
            # \1 and \2 tell readline that what is between takes no space on the line.
            label = "\1\033[1;32m\2you>\1\033[0m\2 "
        # Bytes that are not UTF-8 come from the terminal as surrogates.
        return input(label).encode(errors="replace").decode()

    def _write(self, text: str) -> None:
        # Straight to the stream: a model must not control wrapping and markup.
        self._out.file.write(text.translate(_HARMLESS))
        self._out.file.flush()

    def _note(self, text: str) -> None:
        self._notes.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def _read_pipe() -> str:
    line = streams.read_line()
    if not line:
        raise EOFError
    return line
