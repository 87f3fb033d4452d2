"""A reward model as a reward by path."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from gemmule.checkpoints.hf.writer import save_model
from gemmule.errors import CheckpointError, ConfigError, TokenizerError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.answer_source import packed
from gemmule.posttrain.chat_data import ChatData, write_prompts
from gemmule.posttrain.conversations import Message, Prompt
from gemmule.posttrain.recipes import rl
from gemmule.posttrain.reward_model.model import RewardModel
from gemmule.posttrain.reward_model.reward import LearnedReward
from gemmule.posttrain.rewards.by_name import check_tokenizer, open_reward, open_rewards
from gemmule.posttrain.rewards.protocol import Answer
from gemmule.posttrain.segments import Segments
from gemmule.train.config import RunConfig
from judged_answers import CONTEXT, OPTIONS, pair_folder, parent, sentence
from models import TINY, random_model, tiny_config


def saved(folder: Path, tokenizer: Tokenizer) -> RewardModel:
    shape = tiny_config(TINY, vocab_size=tokenizer.vocab_size)
    head = torch.randn(1, shape.hidden_size, generator=torch.Generator().manual_seed(1))
    model = RewardModel.on(random_model(shape, seed=5, std={"": 0.3}), head)
    save_model(model, tokenizer, folder)
    return model


@pytest.fixture(scope="module")
def inputs(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("learned")
    saved(folder / "reward", pieces)
    prompts = [
        Prompt((Message("user", f"{sentence(random.Random(n))} {n}"),), record={"n": n})
        for n in range(30)
    ]
    return {
        "reward": folder / "reward",
        "pairs": pair_folder(pieces, folder / "pairs").dataset.path,
        "prompts": write_prompts(prompts, pieces, folder / "prompts", OPTIONS).dataset.path,
        "parent": parent(pieces, folder / "parent"),
    }


def test_an_answer_has_the_score_of_its_whole_conversation(
    inputs: Mapping[str, Path], pieces: Tokenizer, tmp_path: Path
) -> None:
    """However much of the end, <end_of_turn><eos>, the sampler has left on the answer."""
    model, reward = saved(tmp_path / "same", pieces), open_reward(str(inputs["reward"]))
    data = ChatData.open(inputs["pairs"])
    for pair in data.pairs("heldout"):
        expected = model.scores(Segments.of(packed([pair.chosen]))).tolist()
        prompt, rest = pair.chosen.ids[: pair.prompt_tokens], pair.chosen.ids[pair.prompt_tokens :]
        assert rest[-2:] == (107, pieces.eos_id)
        for ids in (rest, rest[:-1], rest[:-2]):
            assert reward.score([Answer("", {}, prompt, ids)]) == expected
        three = [Answer("", {}, prompt, ids) for ids in (rest, (5, 6), rest[:-1])]
        scores = reward.score(three)
        assert [scores[0], scores[2]] == expected * 2
        assert scores[1] != scores[0]


def test_it_is_opened_by_path(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    reward = open_reward(str(inputs["reward"]))
    assert isinstance(reward, LearnedReward)
    about = reward.describe()
    assert (about["name"], about["path"]) == ("reward model", str(inputs["reward"]))
    assert len(about["fingerprint"]) == 64
    with pytest.raises(CheckpointError, match="is not that of a reward model"):
        open_reward(str(inputs["parent"]))
    with pytest.raises(CheckpointError, match="nothing at"):
        open_reward(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"no reward 'exat'; did you mean 'exact'.*by its path"):
        open_reward("exat")


def test_ids_must_mean_the_same(
    inputs: Mapping[str, Path], pieces: Tokenizer, other_pieces: Tokenizer
) -> None:
    rewards = open_rewards({str(inputs["reward"]): 0.5, "exact": 1.0})
    check_tokenizer(rewards, pieces)
    with pytest.raises(TokenizerError, match="has another tokenizer"):
        check_tokenizer(rewards, other_pieces)


def rl_settings(inputs: Mapping[str, Path], reward: Path) -> RunConfig:
    return RunConfig.parse(
        {
            "steps": 1,
            "data": {"path": str(inputs["prompts"]), "seq_len": CONTEXT, "batch_size": 4},
            "model": {"init": str(inputs["parent"])},
            "objective": {
                "kind": "rl",
                "rewards": {str(reward): 1.0},
                "samples": 2,
                "max_new_tokens": 4,
            },
            "runtime": {"compile": False, "dtype": "float32", "threads": 1},
        }
    )


def test_reinforcement_learning_takes_it(
    inputs: Mapping[str, Path], other_pieces: Tokenizer, tmp_path: Path
) -> None:
    data = ChatData.open(inputs["prompts"]).dataset
    recipe = rl.build(rl_settings(inputs, inputs["reward"]), data)
    batch = recipe.source.next()
    assert batch.tokens_BT.numel() > 0
    saved(tmp_path / "other", other_pieces)
    with pytest.raises(TokenizerError, match="has another tokenizer"):
        rl.build(rl_settings(inputs, tmp_path / "other"), data)
