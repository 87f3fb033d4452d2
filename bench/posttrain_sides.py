"""The two sides of bench/posttrain.py: gemmule's objectives and TRL's trainers, on the same ids.

torch is imported inside the functions only: the parent stays small.
"""

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness

Ids = list[int]
# A prompt and the answers to it: one for SFT, the chosen and the rejected one for DPO, a group's
# for RLOO.
Example = tuple[Ids, list[Ids]]
ANSWERS = {"sft": 1, "dpo": 2, "rloo": 4}


def examples(settings: Mapping[str, Any], step: int) -> list[Example]:
    """The examples of a step: random ids, and lengths as conversations have them."""
    rng = random.Random(settings["seed"] * 1000 + step)
    vocabulary, shortest, longest = settings["model"]["vocab_size"], *settings["answer_tokens"]

    def ids(count: int) -> Ids:
        # Id 0 is padding, whose embedding transformers does not train.
        return [rng.randrange(1, vocabulary) for _ in range(count)]

    answers = ANSWERS[settings["method"]]
    return [
        (
            ids(rng.randint(*settings["prompt_tokens"])),
            [ids(rng.randint(shortest, longest)) for _ in range(answers)],
        )
        for _ in range(settings["conversations"] // answers)
    ]


def rewards(example: Example) -> list[float]:
    """Rewards of a group's answers: they only have to differ."""
    return [answer[0] % 7 / 7 + len(answer) / 100 for answer in example[1]]


def token_count(batch: Sequence[Example]) -> int:
    """Tokens of whole conversations, prompts counted with each answer; padding does not count."""
    return sum(len(prompt) + len(answer) for prompt, answers in batch for answer in answers)


class Side:
    """A model that is trained on the steps' examples.

    Args:
        model: model to train.
        prepare: makes a step's batches of its examples; it is not timed.
        backward: adds the gradients of a prepared step to the model's; returns the loss.
        settings: settings of the benchmark.
        imports_mb: peak memory before the model was built.
    """

    def __init__(
        self,
        model: Any,
        prepare: Callable[[list[Example]], Any],
        backward: Callable[[Any], float],
        settings: Mapping[str, Any],
        imports_mb: float,
    ) -> None:
        import torch

        self.model, self._prepare, self._backward = model, prepare, backward
        self._settings, self.imports_mb = settings, imports_mb
        self._optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=settings["learning_rate"],
            fused=True,
        )
        self._done = 0

    def step(self, save: Path | None = None) -> tuple[float, int, float]:
        """Loss, tokens and seconds of a step; `save` is a file for its gradients."""
        from torch.nn.utils import clip_grad_norm_

        batch = examples(self._settings, self._done % self._settings["batches"])
        self._done += 1
        prepared = self._prepare(batch)
        began = time.perf_counter()
        loss = self._backward(prepared)
        if save is not None:
            save_gradients(self.model, save)
        clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss, token_count(batch), time.perf_counter() - began

    def handle(self, request: Mapping[str, Any]) -> harness.Reply:
        """Answers the parent: steps whose gradients are kept, or timed steps."""
        if "gradients" in request:
            folder = Path(request["gradients"])
            steps = [self.step(folder / f"{i}.safetensors") for i in range(request["steps"])]
            return {"losses": [loss for loss, *_ in steps]}
        steps = [self.step() for _ in range(request["steps"])]
        return {
            "rate": sum(s[1] for s in steps) / sum(s[2] for s in steps),
            "loss": steps[0][0],
            "peak_rss_mb": harness.peak_mb(),
            "imports_rss_mb": self.imports_mb,
        }


def save_gradients(model: Any, path: Path) -> None:
    """Gradients by transformers' names."""
    from safetensors.torch import save_file

    prefix = "" if any(n.startswith("model.") for n, _ in model.named_parameters()) else "model."
    grads = {prefix + n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    save_file(grads, path)


def start(settings: Mapping[str, Any]) -> Any:
    """The weights that both sides begin with, a Gemma."""
    import torch

    from gemmule.model.config import GemmaConfig
    from gemmule.model.gemma import Gemma

    torch.manual_seed(settings["seed"])
    return Gemma(GemmaConfig(**settings["model"]))


def tokenizer_of(settings: Mapping[str, Any]) -> Any:
    """A small tokenizer; the examples are ids already."""
    from gemmule.model.tokenizer import train_tokenizer

    text = "pack my box with five dozen liquor jugs, quick brown fox over lazy dogs "
    return train_tokenizer([text * 9] * 20, 512)


# gemmule ------------------------------------------------------------------------------------------


def build_gemmule(settings: Mapping[str, Any]) -> Side:
    """What a run of gemmule does in a step."""
    import torch

    from gemmule.posttrain.objectives.answer_tokens import AnswerTokens
    from gemmule.runtime import memory, torch_compile
    from gemmule.runtime.config import RuntimeConfig
    from gemmule.train.step import accumulate

    imports_mb = harness.peak_mb()
    torch.set_num_threads(settings["threads"])
    memory.keep_freed_memory()
    model, compiled = start(settings), settings["mode"].endswith("compiled")
    if compiled:
        torch_compile.compile_blocks(model.layers)
    objective: Any
    if settings["method"] == "sft":
        objective, prepare = AnswerTokens(), _packed_rows(settings)
    elif settings["method"] == "dpo":
        objective, prepare = _dpo(settings, model)
    else:
        objective, prepare = _rloo(settings, model)
    objective.prepare("cpu", compiled)
    runtime = RuntimeConfig(device="cpu", dtype="float32", threads=settings["threads"])

    def backward(batches: Any) -> float:
        denominator = objective.denominator(batches)
        return accumulate(model, objective, batches, denominator, runtime)["loss"]

    return Side(model, prepare, backward, settings, imports_mb)


def _rendered(example: Example) -> list[Any]:
    from gemmule.posttrain.rendering import Rendered

    prompt, answers = example
    return [Rendered((*prompt, *a), (False,) * len(prompt) + (True,) * len(a)) for a in answers]


def _packed_rows(settings: Mapping[str, Any]) -> Callable[[list[Example]], Any]:
    """Conversations in rows of seq_len tokens by best fit, as SFT reads them."""
    import torch

    from gemmule.data.batch import Batch
    from gemmule.data.whole_documents import best_fit
    from gemmule.losses.labels import IGNORED

    length = settings["seq_len"]

    def prepare(batch: list[Example]) -> list[Batch]:
        conversations = [c for example in batch for c in _rendered(example)]
        rows = best_fit([len(c) - 1 for c in conversations], length)
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        labels, doc_ids = torch.full_like(tokens, IGNORED), torch.zeros_like(tokens)
        for row, indices in enumerate(rows):
            at = 0
            for number, index in enumerate(indices, 1):
                c = conversations[index]
                part = slice(at, at + len(c) - 1)
                tokens[row, part] = torch.tensor(c.ids[:-1])
                trained = torch.tensor(c.trained[1:])
                labels[row, part] = torch.where(trained, torch.tensor(c.ids[1:]), IGNORED)
                doc_ids[row, part] = number
                at = part.stop
        return [Batch(tokens, labels, doc_ids)]

    return prepare


def _dpo(settings: Mapping[str, Any], model: Any) -> tuple[Any, Callable[[list[Example]], Any]]:
    """DPO; the reference's log-probabilities are computed before the first step, as in a run."""
    import torch

    from gemmule.data.batch import Batch
    from gemmule.posttrain.answer_source import EXAMPLES, packed
    from gemmule.posttrain.objectives.preference import TRAIN, PairPreference
    from gemmule.posttrain.preference_losses import PairLoss
    from gemmule.posttrain.reference import Reference
    from gemmule.runs.layout import RunLayout
    from gemmule.runtime.config import RuntimeConfig

    steps = [examples(settings, step) for step in range(settings["batches"])]
    answers = [c for batch in steps for example in batch for c in _rendered(example)]
    reference = Reference({TRAIN: answers})
    runtime = RuntimeConfig(device="cpu", dtype="float32", compile=False)
    with tempfile.TemporaryDirectory() as folder:
        reference.begin(model, RunLayout(Path(folder)), runtime, settings["seq_len"] * 2)
    places = {str(batch[0][0]): i * len(batch) for i, batch in enumerate(steps)}

    def prepare(batch: list[Example]) -> list[Batch]:
        first = places[str(batch[0][0])]
        whole = packed([c for example in batch for c in _rendered(example)])
        indices = {EXAMPLES: torch.arange(first, first + len(batch))}
        return [Batch(whole.tokens_BT, whole.labels_BT, whole.doc_ids_BT, extras=indices)]

    return PairPreference(PairLoss("dpo", settings["beta"]), reference), prepare


def _rloo(settings: Mapping[str, Any], model: Any) -> tuple[Any, Callable[[list[Example]], Any]]:
    """RLOO on given answers: advantages from rewards, and the policy gradient."""
    import torch

    from gemmule.data.batch import Batch
    from gemmule.posttrain.advantages import leave_one_out
    from gemmule.posttrain.objectives.policy_gradient import Normalization, PolicyGradient
    from gemmule.posttrain.rewarded_steps import GroupSteps, Rewarding
    from gemmule.posttrain.rollouts import Group, Rollout, RolloutPrompt
    from gemmule.posttrain.sampler_check import SamplerCheck

    class Given:
        name = "given"

        def score(self, answers: Sequence[Any]) -> list[float]:
            return [answer.record["rewards"][answer.ids] for answer in answers]

        def describe(self) -> dict[str, Any]:
            return {"name": self.name}

    normalization = Normalization("rloo", settings["answer_tokens"][1])
    how = Rewarding(Given(), 0.0, None, 0.0, normalization, settings["conversations"])
    steps = GroupSteps(how, leave_one_out, leave_one_out)

    @torch.no_grad()
    def sampled(prompt: Ids, answer: Ids) -> Rollout:
        ids = torch.tensor([prompt + answer])
        logits = model(ids[:, :-1])[0, len(prompt) - 1 :].log_softmax(-1)
        logprobs = logits.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()
        return Rollout(tuple(prompt), tuple(answer), tuple(logprobs), "", True)

    def prepare(batch: list[Example]) -> list[Batch]:
        groups = []
        for position, (prompt, answers) in enumerate(batch):
            scores = rewards((prompt, answers))
            record = {"rewards": {tuple(a): s for a, s in zip(answers, scores, strict=True)}}
            rollouts = tuple(sampled(prompt, answer) for answer in answers)
            groups.append(Group(RolloutPrompt(tuple(prompt), record), rollouts, position))
        return list(steps.build(groups))

    return PolicyGradient(normalization, SamplerCheck()), prepare


# TRL ----------------------------------------------------------------------------------------------


def build_trl(settings: Mapping[str, Any]) -> Side:
    """What TRL's trainer does in a step, called as transformers' loop calls it."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    from gemmule.checkpoints.hf.writer import save_model

    method, mode = settings["method"], settings["mode"]
    config_class, trainer_class = {
        "sft": (trl.SFTConfig, trl.SFTTrainer),
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
        "rloo": (trl.RLOOConfig, trl.RLOOTrainer),
    }[method]
    imports_mb = harness.peak_mb()
    torch.set_num_threads(settings["threads"])
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    save_model(start(settings), tokenizer_of(settings), Path(folder.name) / "base")
    common: dict[str, Any] = {
        "output_dir": str(Path(folder.name) / "out"),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "gradient_checkpointing": mode.endswith("checkpointing"),
        # Eager attention is the only one of transformers' that honors the soft cap here.
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": "eager"},
        "seed": settings["seed"],
    }
    text = {
        "sft": {"text": ["a"]},
        "dpo": {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]},
        "rloo": {"prompt": ["a"]},
    }[method]
    if method == "dpo":
        common |= {"beta": settings["beta"], "disable_dropout": True}
    more: dict[str, Any] = {}
    if method == "rloo":
        count = settings["conversations"]
        common |= {
            "beta": 0.0, "num_generations": ANSWERS["rloo"], "per_device_train_batch_size": count,
        }  # fmt: skip
        more = {"reward_funcs": lambda prompts, **_: [0.0] * len(prompts)}
    trainer = trainer_class(
        model=str(Path(folder.name) / "base"),
        args=config_class(**common),
        train_dataset=Dataset.from_dict(text),
        processing_class=AutoTokenizer.from_pretrained(Path(folder.name) / "base"),
        **more,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    prepare = {"sft": _trl_sft, "dpo": _trl_dpo, "rloo": _trl_rloo}[method](trainer, settings)

    def backward(inputs: Any) -> float:
        count = (inputs["labels"] != -100).sum() if method == "sft" else None
        if method == "rloo":
            loss = trainer.compute_loss(trainer.model, inputs)
            loss.backward()
            return float(inputs["surrogate"])
        return float(trainer.training_step(trainer.model, inputs, count))

    side = Side(trainer.model, prepare, backward, settings, imports_mb)
    side.folder = folder  # type: ignore[attr-defined]  # kept as long as the trainer
    return side


def _trl_sft(trainer: Any, settings: Mapping[str, Any]) -> Callable[[list[Example]], Any]:
    def prepare(batch: list[Example]) -> Any:
        return trainer.data_collator(
            [
                {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
                for prompt, (answer,) in batch
            ]
        )

    return prepare


def _trl_dpo(trainer: Any, settings: Mapping[str, Any]) -> Callable[[list[Example]], Any]:
    """With "precomputed", the reference's log-probabilities are computed once, before the steps."""
    precomputed = "precomputed" in settings["mode"]
    known: dict[str, Any] = {}

    def collated(batch: list[Example]) -> Any:
        return trainer.data_collator(
            [
                {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
                for prompt, (chosen, rejected) in batch
            ]
        )

    if precomputed:
        for step in range(settings["batches"]):
            batch = examples(settings, step)
            known[str(batch)] = trainer.compute_ref_log_probs(trainer.ref_model, collated(batch))
        trainer.ref_model, trainer.precompute_ref_logps = None, True

    def prepare(batch: list[Example]) -> Any:
        inputs = collated(batch)
        if precomputed:
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = known[str(batch)]
        return inputs

    return prepare


def _trl_rloo(trainer: Any, settings: Mapping[str, Any]) -> Callable[[list[Example]], Any]:
    """The trainer's own path from answers to inputs, with given answers and rewards."""
    import torch

    def prepare(batch: list[Example]) -> Any:
        rows = [(prompt, answer) for prompt, answers in batch for answer in answers]
        scores = [score for example in batch for score in rewards(example)]
        trainer._generate = lambda _: ([p for p, _ in rows], [a for _, a in rows], [""] * len(rows))
        trainer._calculate_rewards = lambda *_: torch.tensor(scores)[:, None]
        inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * len(rows))
        # At ratio 1 the loss itself is minus the mean advantage, 0; what has its gradient:
        inputs["surrogate"] = -(inputs["advantages"] * inputs["old_logps"]).mean()
        return inputs

    return prepare
