"""A reward model on people's preference pairs, in k folds, against rules that do not read them.

    python bench/posttrain_reward.py pairs.jsonl --model runs/quickstart/student --out runs/hh \
        --json bench/results/posttrain_reward.json

Each pair is scored by the model of the fold that did not train on it or on another pair with the
same first message. Folds that are finished are kept, so a stopped run continues.
"""

import argparse
import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gemmule import files, stats
from gemmule.checkpoints.load import open_checkpoint
from gemmule.data.read_log import ReadLog
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.answer_source import in_batches, packed
from gemmule.posttrain.chat_data import ChatOptions, write_pairs
from gemmule.posttrain.conversations import PreferencePair, first_user_message
from gemmule.posttrain.readers import read_pairs
from gemmule.posttrain.rendering import Rendered, render_conversation
from gemmule.posttrain.reward_model.model import load_reward_model
from gemmule.posttrain.reward_model.rules import compared_with_rules
from gemmule.posttrain.segments import Segments
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

BATCH, BATCH_TOKENS = 16, 8192


def main() -> None:
    """Trains and scores the folds that are asked for; with all of them there, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", required=True, help="language model to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder of the folds")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--only", type=int, nargs="*", help="train these folds alone")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument(
        "--last-turn", action="store_true", help="of each prompt, keep the last message alone"
    )
    options = parser.parse_args()
    with open_checkpoint(options.model) as checkpoint:
        tokenizer = checkpoint.tokenizer
    pairs = usable_pairs(options, tokenizer)
    for fold in options.only if options.only is not None else range(options.folds):
        score_fold(fold, pairs, tokenizer, options)
    done = [options.out / f"fold-{fold}.json" for fold in range(options.folds)]
    if all(path.is_file() for path in done):
        result = summary(pairs, [files.read_json(path) for path in done], tokenizer, options)
        files.write_json(options.json, result)
        print(result)


def usable_pairs(options: argparse.Namespace, tokenizer: Tokenizer) -> list[PreferencePair]:
    """The pairs that fit into `--seq-len` tokens."""
    pairs = list(read_pairs([options.pairs], ReadLog()))
    if options.last_turn:
        pairs = [dataclasses.replace(p, prompt=p.prompt[-1:]) for p in pairs]
    fit = [p for p in pairs if max(map(len, rendered([p], tokenizer))) <= options.seq_len]
    print(f"{len(fit)} of {len(pairs)} pairs have at most {options.seq_len} tokens")
    return fit


def rendered(pairs: Sequence[PreferencePair], tokenizer: Tokenizer) -> list[Rendered]:
    """Chosen and rejected conversation of each pair, one after the other; answers are trained."""
    conversations = []
    for pair in pairs:
        before = tuple(dataclasses.replace(m, trained=False) for m in pair.prompt)
        conversations += [
            render_conversation((*before, *answer), tokenizer)
            for answer in (pair.chosen, pair.rejected)
        ]
    return conversations


def fold_of(pair: PreferencePair, folds: int) -> int:
    """The fold that tests a pair; pairs with the same first message are in the same one."""
    text = first_user_message(pair.prompt)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % folds


def score_fold(
    fold: int, pairs: Sequence[PreferencePair], tokenizer: Tokenizer, options: argparse.Namespace
) -> None:
    """Trains a model without the fold's pairs, and scores these."""
    path, run = options.out / f"fold-{fold}.json", options.out / f"fold-{fold}"
    if path.is_file():
        return
    shutil.rmtree(run, ignore_errors=True)
    train = [pair for pair in pairs if fold_of(pair, options.folds) != fold]
    share = ChatOptions(name="preference pairs", validation=0.01, heldout=0.01)
    data = write_pairs(train, tokenizer, run / "data", share)
    config = RunConfig.parse(
        {
            "steps": max(1, round(options.epochs * data.count("train") / BATCH)),
            "seed": fold,
            "data": {"path": str(run / "data"), "seq_len": options.seq_len, "batch_size": BATCH},
            "model": {"init": options.model},
            "objective": {"kind": "reward"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": options.learning_rate,
                "embedding_learning_rate": options.learning_rate,
            },
            "schedule": {"name": "cosine", "warmup": 0.1},
            "evaluation": {"every": 10**6},
            "runtime": {"dtype": "float32", "compile": False, "threads": options.threads},
        }
    )
    result = run_training(config, run / "run")
    model, _ = load_reward_model(run / "run")
    test = [pair for pair in pairs if fold_of(pair, options.folds) == fold]
    conversations, scores = rendered(test, tokenizer), []
    with torch.no_grad():
        for part in in_batches([len(c) for c in conversations], BATCH_TOKENS):
            scores += model.scores(Segments.of(packed(conversations[part]))).tolist()
    files.write_json(path, {"scores": scores, "seconds": result["seconds"]})
    shutil.rmtree(run)


def summary(
    pairs: Sequence[PreferencePair],
    folds: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Accuracy over all pairs, and against the rules, pair by pair."""
    right: list[bool] = []
    ordered: list[PreferencePair] = []
    by_fold = []
    for fold, result in enumerate(folds):
        own = [
            chosen > rejected
            for chosen, rejected in zip(result["scores"][::2], result["scores"][1::2], strict=True)
        ]
        by_fold.append(sum(own) / len(own))
        right += own
        ordered += [pair for pair in pairs if fold_of(pair, options.folds) == fold]
    given = {k: v for k, v in vars(options).items() if k not in ("pairs", "model", "out", "json")}
    return {
        "settings": {**given, "model": Path(options.model).name, "only": None},
        "pairs": len(right),
        "accuracy": stats.proportion(sum(right), len(right)).json(),
        "accuracy_by_fold": by_fold,
        "rules": compared_with_rules(right, rendered(ordered, tokenizer), tokenizer),
        "seconds": sum(result["seconds"] for result in folds),
    }


if __name__ == "__main__":
    main()
