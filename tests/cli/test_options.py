"""Options: groups that become options of a command, and help texts."""

import dataclasses
import typing
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from gemmule import cli
from gemmule.cli.options import Options, expand


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size(Options):
    width: Annotated[int, typer.Option(help="Width.")]
    depth: Annotated[int | None, typer.Option(help="Depth.")] = None
    tall: Annotated[bool, typer.Option("--tall", help="Tall.")] = False


calls: list[tuple[str, Size, int]] = []


def build(
    name: Annotated[str, typer.Argument(help="Name.")],
    *,
    copies: Annotated[int, typer.Option(help="Copies.")] = 1,
    size: Size,
) -> None:
    """Build it."""
    calls.append((name, size, copies))


@pytest.fixture
def app() -> typer.Typer:
    calls.clear()
    app = typer.Typer()
    app.command()(expand(build))
    return app


def test_a_group_becomes_options_and_arrives_as_one(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["hut", "--width", "3", "--tall"])
    assert done.exit_code == 0, done.output
    assert calls == [("hut", Size(width=3, tall=True), 1)]
    assert calls[0][1].given() == {"width": 3, "tall": True}  # a depth of None is left out


def test_a_required_option_of_a_group_is_required(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["hut", "--depth", "3"])
    assert done.exit_code == 2
    assert "--width" in done.output
    assert not calls


def test_groups_keep_their_place_in_the_help(app: typer.Typer) -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    places = [text.index(option) for option in ("--copies", "--width", "--depth", "--tall")]
    assert places == sorted(places)


def commands() -> dict[str, typing.Any]:
    root: typing.Any = typer.main.get_command(cli.app)
    result = dict(root.commands)
    result["tokenizer train"] = result.pop("tokenizer").commands["train"]
    return result


@pytest.mark.parametrize(("name", "command"), commands().items(), ids=list(commands()))
def test_every_option_has_a_help_text(name: str, command: typing.Any) -> None:
    bare = [p.name for p in command.params if not (getattr(p, "help", None) or "").strip()]
    assert bare == []


def test_what_commands_share_reads_the_same() -> None:
    shared = ("quantize", "device", "dtype", "as_json", "overrides", "data_dir", "country", "top_p",
              "temperature", "resume")  # fmt: skip
    texts: dict[str, set[str]] = {name: set() for name in shared}
    for name, command in commands().items():
        for parameter in command.params:
            own = {("convert", "dtype"), ("plan", "dtype"), ("record", "temperature")}
            if parameter.name in shared and (name, parameter.name) not in own:
                texts[parameter.name].add(parameter.help)
    assert {name: len(t) for name, t in texts.items()} == dict.fromkeys(shared, 1)
