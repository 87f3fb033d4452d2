"""gemmule synthesize: answers of a teacher to prompts."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import POST_TRAIN, RERUN, command, stoppable
from gemmule.cli.options import AsJson, MaxNewTokens, Temperature
from gemmule.config import ModelName


@command(POST_TRAIN)
def synthesize(
    prompts: Annotated[
        list[Path], typer.Argument(help="Files of prompts or conversations: JSON, CSV, Parquet.")
    ],
    teacher: Annotated[
        ModelName, typer.Option(help="Model that answers: run, HF folder, hub id or file.")
    ],
    out: Annotated[Path, typer.Option(help="File of conversations to write, .jsonl.")],
    samples: Annotated[int, typer.Option(help="Number of answers to each prompt.")] = 1,
    reward: Annotated[
        str | None, typer.Option(help="Reward to record: a verifier, or module:function.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Keep only the answer with the highest reward.")
    ] = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the most likely tokens that sum to this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the answers.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Have a teacher answer prompts, for a student to be fine-tuned on.

    Answers that a limit cuts are left out and counted. If it is stopped, the same command continues
    from there.

    Example: gemmule synthesize prompts.jsonl --teacher runs/big --out answers.jsonl
    """
    from gemmule.console import key_values
    from gemmule.data.read_log import ReadLog
    from gemmule.posttrain.readers import read_prompts
    from gemmule.posttrain.rewards.by_name import open_reward
    from gemmule.posttrain.synthesis import SynthesisConfig, describe
    from gemmule.posttrain.synthesis import synthesize as run

    config = SynthesisConfig.parse(
        {
            "teacher": teacher, "samples": samples, "best": best, "seed": seed,
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p,
        }
    )  # fmt: skip
    log = ReadLog()
    with stoppable(RERUN):
        asked = list(read_prompts(prompts, log))
        summary = run(config, asked, out, None if reward is None else open_reward(reward))
    if as_json:
        print(json.dumps({**summary, "unreadable": dict(log.left_out)}))
    else:
        rows = [("records left out", log.summary())] if log.left_out else []
        key_values([*describe(summary), *rows], title=str(out))
