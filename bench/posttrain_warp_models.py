"""The models of bench/posttrain_warp.py: their data, their training runs, their merges."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.language_model import load
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.posttrain.chat_data import write_conversations, write_pairs, write_prompts
from gemmule.posttrain.conversations import Conversation, Message, PreferencePair, Prompt
from gemmule.posttrain.merging.coefficients import Method
from gemmule.posttrain.merging.merge import merge
from gemmule.posttrain.merging.warp import WarpConfig, warp
from gemmule.posttrain.rendering import render_prompt
from gemmule.posttrain.rollouts import Group, RolloutPrompt, RolloutSampler
from gemmule.posttrain.tasks.problem import Problem, problems
from gemmule.runs.layout import RunLayout
from gemmule.train.config import RunConfig
from posttrain_warp_runs import Runs, adamw, loaded, slug
from word_lines import gold, word_line

ANSWER_TOKENS = 24
PAIRS_PER_STEP = 16
TOY_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        prompts: prompts of the training split; each has one demonstration.
        sft_steps: steps of fine-tuning on demonstrations, 8 rows of 256 tokens each.
        pairs: numbers of preference pairs to train a proxy on.
        noise: probability that a pair is labeled the wrong way round.
        proxy: number of pairs of the proxy that policies are trained on.
        epochs: passes of each proxy through its pairs, more through few.
        dpo_epochs: the same of DPO, on the pairs of `proxy`.
        pool: prompts and answers to each, for best of n.
        test: prompts and answers to each, for a policy.
        best_of: values of n.
        dpo_betas: values of beta in DPO.
        rloo_betas: values of beta in RLOO with a fixed anchor.
        ema_beta: beta of the runs with a moving anchor, one of `rloo_betas`.
        anchor_rate: how far that anchor moves at each step.
        steps: steps of a run of reinforcement learning.
        asked: prompts of a step.
        group: answers to each.
        rate: learning rate of reinforcement learning.
        dpo_rate: learning rate of DPO.
        places: measured models of such a run, evenly spread over its steps.
        runs: runs of an iteration of WARP.
        etas: places on the way from the start to a merge, besides its end.
        cut: reward of an answer that the limit cuts.
    """

    prompts: int = 6000
    sft_steps: int = 250
    pairs: tuple[int, ...] = (150, 600, 2400)
    epochs: tuple[float, ...] = (4, 2, 1)
    dpo_epochs: float = 1.0
    noise: float = 0.2
    proxy: int = 600
    pool: tuple[int, int] = (32, 64)
    test: tuple[int, int] = (64, 3)
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    dpo_betas: tuple[float, ...] = (0.03, 0.1, 0.3)
    rloo_betas: tuple[float, ...] = (0.05, 0.2, 0.5)
    ema_beta: float = 0.2
    anchor_rate: float = 0.1
    steps: int = 30
    asked: int = 4
    group: int = 8
    rate: float = 0.001
    dpo_rate: float = 0.001
    places: int = 3
    runs: int = 2
    etas: tuple[float, ...] = (0.5,)
    cut: float = -3.0


FULL = Size()
TOY = Size(
    prompts=120, sft_steps=2, pairs=(24, 48), epochs=(2, 1), proxy=24, pool=(2, 8), test=(3, 2),
    best_of=(1, 4), dpo_betas=(0.1,), rloo_betas=(0.1,), ema_beta=0.1, steps=2,
    asked=2, group=3, places=2, etas=(0.5,),
)  # fmt: skip


class Models:
    """The models of a seed, in a folder of its own; each is trained when it is first asked for.

    A finished model is not trained again, and a stopped run continues.

    Args:
        seed: seed of data, training and answers.
        base: model to start from; None: a random one.
        out: the folder.
        size: how much of everything.
        threads: CPU threads.
        finished: whether only what is finished may be used; see `Runs`.
    """

    def __init__(
        self,
        seed: int,
        base: Path | None,
        out: Path,
        size: Size,
        threads: int,
        finished: bool = False,
    ) -> None:
        self.seed, self.base, self.size = seed, base, size
        self.runs = Runs(seed, out, threads, size.places, finished)
        self._shared = Runs(0, out.parent, threads, size.places, finished)
        self._train_split = problems(word_line, "word lines", "train", size.prompts, seed)
        count = max(size.pool[0], size.test[0])
        self.heldout = problems(word_line, "word lines", "heldout", count, seed)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The student's tokenizer, or one of the game's words."""
        if self.base is not None:
            return load(self.base).tokenizer
        told = problems(word_line, "word lines", "train", self.size.prompts, 0)
        return train_tokenizer([f"{p.prompt}\n{p.answer}" for p in told], 600)

    # Data and models to start with -----------------------------------------------------------

    @cached_property
    def start(self) -> Path:
        """A model of mediocre lines, the same for all seeds."""
        return self._shared.trained("start", self._fine_tuning)

    def _fine_tuning(self) -> RunConfig:
        model: dict[str, Any] = {"preset": "1m", **TOY_SHAPE}
        if self.base is not None:
            model = {"init": str(self.base)}
        told = [
            Conversation((*asked(p), Message("assistant", p.answer)), p.key)
            for p in problems(word_line, "word lines", "train", self.size.prompts, 0)
        ]
        data = self._shared.folder("demonstrations", write_conversations, told, self.tokenizer)
        rates = {"learning_rate": 0.006, "embedding_learning_rate": 0.012, "weight_decay": 0.0}
        objective, steps = {"kind": "sft", "stop_prompts": 0}, self.size.sft_steps
        return self._shared.config(data, model, objective, steps, 8, rates, decay=0.3, seq_len=256)

    @cached_property
    def start_model(self) -> Gemma:
        """The start, loaded."""
        return loaded(self.start)

    def proxy(self, count: int) -> Path:
        """A reward model trained on the first `count` pairs."""
        epochs = self.size.epochs[self.size.pairs.index(count)]
        return self.runs.trained(
            f"proxy-{count}", lambda: self._on_pairs(count, {"kind": "reward"}, epochs, 0.001)
        )

    def dpo(self, beta: float) -> Path:
        """DPO on the pairs of the proxy that the other policies are trained on."""
        objective = {"kind": "preference", "method": "dpo", "beta": beta}
        count, epochs, rate = self.size.proxy, self.size.dpo_epochs, self.size.dpo_rate
        return self.runs.trained(
            f"dpo-{beta:g}", lambda: self._on_pairs(count, objective, epochs, rate)
        )

    def _on_pairs(
        self, count: int, objective: Mapping[str, Any], epochs: float, rate: float
    ) -> RunConfig:
        data = self._folder(f"pairs-{count}", write_pairs, self._pairs[:count])
        steps = max(1, round(epochs * count / PAIRS_PER_STEP))
        return self._from_start(data, objective, steps, PAIRS_PER_STEP, rate)

    def _folder(self, name: str, write: Callable[..., Any], items: Sequence[Any]) -> Path:
        return self.runs.folder(name, write, items, self.tokenizer)

    @cached_property
    def _pairs(self) -> list[PreferencePair]:
        """Pairs of the start's answers, labeled by the known reward with noise."""
        most = max(self.size.pairs)
        rows = [self._train_split[i % len(self._train_split)] for i in range(most)]
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.rand(most, 2, generator=generator).tolist()
        answers = self.runs.kept("answers", lambda: self._two_answers(rows))
        pairs = []
        for problem, texts, (turn, coin) in zip(rows, answers, draws, strict=True):
            first, second = (gold(text, problem.record) for text in texts)
            better = int(coin < 0.5) if first == second else int(second > first)
            better ^= int(turn < self.size.noise)
            chosen, other = ((Message("assistant", texts[i]),) for i in (better, 1 - better))
            pairs.append(PreferencePair(asked(problem), chosen, other, None, problem.key))
        return pairs

    def _two_answers(self, rows: Sequence[Problem]) -> list[list[str]]:
        """Two answers of the start to each prompt, sampled a thousand prompts at a time."""
        answers = []
        for at in range(0, len(rows), 1000):
            groups = self.sampled(self.start_model, rows[at : at + 1000], 2, self.seed + 1000 + at)
            answers += [[rollout.text for rollout in group.rollouts] for group in groups]
        return answers

    # Reinforcement learning ------------------------------------------------------------------

    def rloo(self, beta: float) -> Path:
        """RLOO with an anchor fixed at the start."""
        return self.runs.trained(f"rloo {beta:g}", lambda: self._rl(_rloo(beta, 0.0)))

    def jbond(self) -> Path:
        """J-BOND."""
        return self.runs.trained("jbond", lambda: self._rl({"method": "jbond"}))

    def longer(self) -> Path:
        """RLOO with a moving anchor, for as many steps as all runs of an iteration of WARP."""
        moving, times = _rloo(self.size.ema_beta, self.size.anchor_rate), self.size.runs
        return self.runs.trained("ema, longer", lambda: self._rl(moving, times))

    def _rl(self, objective: Mapping[str, Any], times: int = 1) -> RunConfig:
        size = self.size
        rows, own = size.asked * size.group, {"samples": size.group}
        if objective["method"] == "jbond":  # three answers to a prompt; two of them are trained on
            rows, own = 2 * max(1, rows // 3), {}
        settings = {
            "kind": "rl", **objective, **own, "rewards": {str(self.proxy(size.proxy)): 1.0},
            "max_new_tokens": ANSWER_TOKENS, "cut_reward": size.cut,
        }  # fmt: skip
        steps = size.steps * times
        every = max(1, steps // size.places)
        return self._from_start(self._prompts, settings, steps, rows, size.rate, every)

    def _from_start(
        self,
        data: Path,
        objective: Mapping[str, Any],
        steps: int,
        rows: int,
        rate: float,
        every: int | None = None,
    ) -> RunConfig:
        model = {"init": str(self.start)}
        return self.runs.config(data, model, objective, steps, rows, adamw(rate), every=every)

    @cached_property
    def _prompts(self) -> Path:
        rows = [Prompt(asked(p), p.key, p.record) for p in self._train_split]
        return self._folder("prompts", write_prompts, rows)

    def warp(self, iteration: int) -> Path:
        """The folder of an iteration of WARP, 1 or 2; the loop runs until it has both."""
        out = self.runs.out / "warp"
        folder = out / f"iteration-{iteration}"
        if not RunLayout(folder / "merge").finished:
            self.runs.begin("warp")
            begun = RunLayout(out).config.is_file()
            if out.exists() and not begun:
                shutil.rmtree(out)
            config = self._rl(_rloo(self.size.ema_beta, self.size.anchor_rate))
            loop = WarpConfig(runs=self.size.runs, iterations=2)
            warp(config, loop, out, resume=begun, stage=self.runs.say)
        return folder

    def merged(
        self, name: str, models: Sequence[Path], base: Path, method: Method, eta: float = 1.0
    ) -> Path:
        """A merge; see `gemmule.posttrain.merging.merge.merge`."""
        out = self.runs.out / "merges" / slug(name)
        if not RunLayout(out).finished:
            self.runs.begin(name)
            merge(models, out, base=base, method=method, eta=eta)
        return out

    # Answers ---------------------------------------------------------------------------------

    def sampled(self, model: Gemma, rows: Sequence[Problem], n: int, seed: int) -> list[Group]:
        """Samples `n` answers of a model to each prompt, at temperature 1."""
        torch.set_num_threads(self.runs.threads)
        prompts = [
            RolloutPrompt(tuple(render_prompt(asked(p), self.tokenizer)), p.record) for p in rows
        ]
        params = SamplingParams.on_policy(ANSWER_TOKENS, n=n)
        sampler = RolloutSampler(model, self.tokenizer, params, seed)
        return sampler.sample(prompts, range(len(prompts)))


def asked(problem: Problem) -> tuple[Message, ...]:
    """The prompt of a problem."""
    return (Message("user", problem.prompt),)


def _rloo(beta: float, anchor_rate: float) -> dict[str, Any]:
    return {"method": "rloo", "beta": beta, "anchor_rate": anchor_rate}
