"""Text that gemmule record and distill prepare first, for the teacher that they are given."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.options import Field, Trimming
from gemmule.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherText(Trimming):
    """Text to prepare first, with the teacher's tokenizer trimmed to it."""

    text: Annotated[
        Path | None,
        typer.Option(
            help="Prepare this text as the data first, with the teacher's tokenizer trimmed to it."
        ),
    ] = None
    field: Field = None

    @classmethod
    def names(cls) -> list[str]:
        """These options, as they are given."""
        return [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(cls)]

    def prepare(self, teacher: str | None, data: Path) -> None:
        """Prepares the text in the folder `data`, if there is a text.

        Raises:
            UserError: when it cannot be prepared, or an option has no meaning.
        """
        if self.text is None:
            useless = [name for name in self.given() if name != "text"]
            if useless:
                raise ConfigError(
                    f"--{useless[0].replace('_', '-')} has no meaning without --text, the text "
                    "that the tokenizer is trimmed to"
                )
            return
        if teacher is None or "://" in teacher.removeprefix("hf://"):
            raise ConfigError(
                "--text is prepared with the tokenizer of the teacher, which has to be a model on "
                "this machine or the hub"
            )
        from gemmule.console import console, counting, stage
        from gemmule.data.text_trim import Extent, compared, prepare_trimmed
        from gemmule.runs.ledger import activity as ledger
        from gemmule.teachers.whole_tokenizer import gemma_tokenizer

        with ledger.activity("data", data), counting("preparing") as progress:
            full = gemma_tokenizer(teacher)
            _, result = prepare_trimmed(
                full, self.text, data, Extent(**self.extent()), field=self.field,
                progress=progress, stage=stage,
            )  # fmt: skip
        console.print(
            f"{data}: {len(result.trimmed.kept_K):,} of {full.vocab_size:,} tokens, "
            f"{compared(result.segmentation)}"
        )
