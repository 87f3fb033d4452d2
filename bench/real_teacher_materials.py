"""What the students of `real_teacher.py` learn from: a text with its vocabulary, and teachers.

A teacher is run three times: to record its targets, to measure its own loss and, where it is
adapted, to be trained on the text for some minutes. Finished parts stay in the folder.
"""

import argparse
import inspect
import math
import pydoc
import shutil
import tempfile
import time
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import harness
from gemmule import files
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import PackedText, eval_batches
from gemmule.data.prepare import prepare
from gemmule.data.text_trim import trim_to_text
from gemmule.errors import ConfigError
from gemmule.losses.labels import IGNORED
from gemmule.model.foreign_layout import load_in_gemma_layout
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.runtime import memory
from gemmule.runtime.threads import set_up_torch
from gemmule.teachers.logit_store import Store
from gemmule.teachers.mapped import MappedTeacher
from gemmule.teachers.open import open_teacher
from gemmule.teachers.record import record, summary
from gemmule.teachers.record_config import RecordConfig
from gemmule.teachers.teacher import LocalTeacher
from gemmule.teachers.transformers_model import import_transformers

_COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


class Materials:
    """A text in tokens of its own, and the teachers.

    Args:
        settings: the benchmark's.
        teacher: folder of a pretrained model in Hugging Face's layout, with more tokens than the
            text has.
        text: the text.
        out: folder for all that is made.

    Raises:
        UserError: when the text is too short, or the model cannot be used.
    """

    def __init__(self, settings: Mapping[str, Any], teacher: Path, text: Path, out: Path) -> None:
        self.settings, self.out = settings, out
        self.teachers = {"plain": teacher, "adapted": out / "adapted"}
        self.dataset = self._prepare(text)
        per_step = settings["batch_size"] * settings["seq_len"]
        if settings["tokens"] % per_step:
            raise ConfigError(
                f"--tokens {settings['tokens']} is not a multiple of {per_step}, the tokens of a "
                "batch: an epoch is a whole number of steps"
            )
        there = self.dataset.split("train").token_count - 1
        if settings["tokens"] > there:
            raise ConfigError(
                f"--tokens {settings['tokens']} is more than the {there:,} tokens of {text} to "
                "train on: lower it"
            )

    def _prepare(self, text: Path) -> Dataset:
        """The text as tokens of a tokenizer that has those of the text alone."""
        folder = self.out / "tokenizer"
        if not folder.is_dir():
            harness.say("trimming the vocabulary")
            full = load_in_gemma_layout(self.teachers["plain"])
            made = trim_to_text(full, text)
            with files.atomic_dir(folder) as partial:
                made.trimmed.tokenizer.save(partial)
                sizes = {"before": full.vocab_size, "after": len(made.trimmed.kept_K)}
                files.write_json(partial / "trim.json", {**sizes, **made.segmentation})
        return prepare(text, Tokenizer.load(folder), self.out / "data")

    def about(self) -> dict[str, Any]:
        """The text and its vocabulary."""
        splits = self.dataset.manifest["splits"]
        return {
            "name": self.dataset.name,
            "vocabulary": files.read_json(self.out / "tokenizer" / "trim.json"),
            "splits": {
                name: {k: part[k] for k in ("documents", "tokens", "bytes")}
                for name, part in splits.items()
            },
        }

    def record(self, which: str) -> Path:
        """The targets of a teacher, recorded once."""
        out = self.out / "targets" / which
        if (out / "manifest.json").is_file() and not Store.open(out).gaps():
            return out
        if which == "adapted":
            self._adapt()
        runtime = {name: self.settings[name] for name in ("dtype", "threads")}
        config = RecordConfig.parse(
            {
                "teacher": str(self.teachers[which]), "data": str(self.dataset.path),
                "targets": {"draws": self.settings["draws"]}, "tokens": self.settings["tokens"],
                "seq_len": self.settings["seq_len"], "compile": False, **runtime,
            }
        )  # fmt: skip
        record(config, out)
        return out

    def judge(self, which: str) -> None:
        """A teacher's own loss on held-out text, with the students' context."""
        file = self.out / f"teacher-{which}.json"
        if file.is_file():
            return
        harness.say(f"evaluating the teacher ({which})")
        teacher = self._open(which)
        values = {
            "flops_per_token": teacher.forward_flops_per_token(self.settings["seq_len"]),
            "heldout": self._loss(teacher, "heldout"),
        }
        files.write_json(file, values)

    @torch.no_grad()
    def _loss(self, teacher: LocalTeacher, split: str) -> dict[str, float]:
        """Nats per token and bits per byte of a teacher, as `evaluate` measures a student."""
        nats, count, size, began = 0.0, 0, 0, time.perf_counter()
        byte_length_V = torch.from_numpy(self.dataset.tokenizer.token_bytes())
        limit = self.settings[f"{split}_tokens"]
        for batch in eval_batches(
            self.dataset.split(split), self.settings["batch_size"], self.settings["seq_len"], limit
        ):
            labels_N = batch.labels_BT.flatten()
            x_ND = teacher.hidden_states(batch).flatten(0, 1)
            nats += teacher.head.cross_entropy(x_ND, labels_N).item()
            predicted = labels_N[labels_N != IGNORED]
            count, size = count + len(predicted), size + int(byte_length_V[predicted].sum())
        return {
            "nats_per_token": nats / count, "bits_per_byte": nats / math.log(2) / size,
            "tokens": count, "tokens_per_second": count / (time.perf_counter() - began),
        }  # fmt: skip

    def _open(self, which: str) -> LocalTeacher:
        set_up_torch()
        torch.set_num_threads(self.settings["threads"])
        memory.keep_freed_memory()
        return open_teacher(str(self.teachers[which]), self.dataset, self.settings["seq_len"])

    def _adapt(self) -> None:
        """Trains all layers of the teacher, not its embedding, on the text for some minutes."""
        out = self.teachers["adapted"]
        if out.is_dir():
            return
        teacher, rate, steps = (
            self._open("plain"), self.settings["adapt_learning_rate"], self.settings["adapt_steps"]
        )  # fmt: skip
        assert isinstance(teacher, MappedTeacher)
        network: Any = teacher.teacher.model
        rows = network.get_input_embeddings().weight
        weights = [p.requires_grad_(True) for p in network.parameters() if p is not rows]
        optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        text = PackedText(
            self.dataset.split("train"), self.settings["batch_size"], self.settings["seq_len"], 0,
            self.settings["tokens"] // self.settings["seq_len"],
        )  # fmt: skip
        losses, began = [], time.perf_counter()
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * min(
                1.0, (step + 1) / 5, (steps - step) / steps
            )
            batch = text.next()
            labels_N = batch.labels_BT.flatten()
            x_ND = teacher.hidden_states(batch).flatten(0, 1)
            loss = teacher.head.cross_entropy(x_ND, labels_N) / (labels_N != IGNORED).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            harness.say(f"adapting the teacher: step {step + 1} of {steps}, loss {losses[-1]:.3f}")
        seconds = time.perf_counter() - began
        with files.atomic_dir(out) as partial:
            network.save_pretrained(partial)
            for name in _COMPANIONS:
                if (self.teachers["plain"] / name).is_file():
                    shutil.copy(self.teachers["plain"] / name, partial / name)
            tokens = steps * self.settings["batch_size"] * self.settings["seq_len"]
            flops = 3 * teacher.forward_flops_per_token(self.settings["seq_len"]) * tokens
            about = {"tokens": tokens, "seconds": seconds, "flops": flops, "losses": losses}
            files.write_json(partial / "adapt.json", about)

    def figures(self) -> dict[str, Any]:
        """Each teacher that was recorded: its loss, the cost of recording and of adapting it."""
        figures: dict[str, Any] = {}
        for which in self.teachers:
            judged, folder = self.out / f"teacher-{which}.json", self.out / "targets" / which
            if not judged.is_file() or not (folder / "manifest.json").is_file():
                continue
            values = files.read_json(judged)
            kept = summary(Store.open(folder))
            names = ("targets", "tokens", "bytes_per_token", "seconds", "dropped_probability")
            recording = {k: kept[k] for k in names}
            recording["tokens_per_second"] = kept["tokens"] / kept["seconds"]
            recording["flops"] = values["flops_per_token"] * kept["tokens"]
            figures[which] = {**values, "recording": recording}
            if which == "adapted":
                figures[which]["adapting"] = files.read_json(
                    self.teachers["adapted"] / "adapt.json"
                )
        return figures


def toy_materials(folder: Path) -> tuple[Path, Path]:
    """A random Gemma 3 with more tokens than the text has, and that text."""
    transformers = import_transformers("the toy teacher")
    teacher, text = folder / "teacher", folder / "text.txt"
    read = [Path(module.__file__).read_text("utf-8") for module in (typing, inspect, pydoc)]
    files.write_text(text, "\n".join(read))
    other = [Path(module.__file__).read_text("utf-8") for module in (argparse, tempfile)]
    tokenizer = train_tokenizer(other, 1000)
    tokenizer.save(teacher)
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.Gemma3ForCausalLM(config).save_pretrained(teacher)
    return teacher, text
