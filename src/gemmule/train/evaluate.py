"""Loss on text that was not trained on: nats per token, perplexity, bits per byte."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gemmule.data.dataset import Dataset, Split
from gemmule.data.mixture.mixed_dataset import MixedDataset
from gemmule.data.packed_text import eval_batches
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.runtime.world import SOLO, World
from gemmule.train.config import RunConfig
from gemmule.train.objective import Objective
from gemmule.train.probe import Probe
from gemmule.train.sharding import gathered, is_sharded

METRICS = ("nats_per_token", "perplexity", "bits_per_byte")


@torch.no_grad()
def evaluate(
    model: Gemma,
    split: Split,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    batch_size: int = 16,
    max_tokens: int | None = None,
    compiled: bool = False,
    half: bool = False,
    world: World = SOLO,
) -> dict[str, float]:
    """Measures the loss of `model` on a split, of which each rank reads a part.

    Bits per byte divide the nats by the UTF-8 bytes of the predicted tokens, so that models with
    different tokenizers can be compared; end-of-document tokens cost nats and have no bytes.

    Args:
        model: model, in evaluation mode.
        split: text.
        tokenizer: tokenizer that made the split.
        seq_len: tokens per sequence.
        batch_size: sequences per forward pass.
        max_tokens: number of tokens to read, spread evenly over the split; None: all.
        compiled: whether the element-wise part of the loss goes through torch.compile.
        half: whether it computes in bfloat16 where training does.
        world: ranks that have the same model; all of them call this.

    Returns:
        nats_per_token, perplexity, bits_per_byte, and tokens, the number of predicted tokens.
    """
    nats, count, size = 0.0, 0.0, 0.0
    device = model.embed_tokens.weight.device
    byte_length_V = torch.from_numpy(tokenizer.token_bytes()).to(device)
    # Uses what training compiled; compiling more for a forward pass would not pay.
    with (
        torch.compiler.set_stance("eager_on_recompile"),
        torch.autocast(device.type, torch.bfloat16, enabled=half),
        gathered(model),
    ):
        for batch in eval_batches(
            split, batch_size, seq_len, max_tokens, part=world.rank, parts=world.size
        ):
            labels_BT = batch.labels_BT.to(device)
            x_BTD = model.hidden_states(
                batch.tokens_BT.to(device), doc_ids_BT=batch.doc_ids_BT.to(device)
            )
            loss = model.head.cross_entropy(
                x_BTD.flatten(0, 1), labels_BT.flatten(), compiled=compiled
            )
            nats += loss.item()
            predicted = labels_BT[labels_BT != IGNORED]
            count += predicted.numel()
            size += int(byte_length_V[predicted].sum())
    nats, count, size = world.sum([nats, count, size])
    return {
        "nats_per_token": nats / count,
        "perplexity": math.exp(min(nats / count, 700.0)),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "tokens": int(count),
    }


def validation_probe(
    config: RunConfig, model: Gemma, dataset: Dataset, objective: Objective, world: World = SOLO
) -> Probe:
    """Evaluation on the validation split, every config.evaluation.every steps.

    Args:
        config: settings of the run.
        model: model that is trained.
        dataset: its data.
        objective: what it minimizes; says whether the run compiles its losses.
        world: ranks of the run.
    """
    measure = _evaluation(config, model, dataset, objective, world)

    def metrics(_: int) -> dict[str, float]:
        values, by_source = measure("validation", config.evaluation.tokens)
        return {name: values[name] for name in METRICS} | {
            f"{name}/{source}": own[name] for source, own in by_source.items() for name in METRICS
        }

    return Probe(
        "validation", config.evaluation.every, metrics, label="split", best="nats_per_token"
    )


def heldout_result(
    config: RunConfig, model: Gemma, dataset: Dataset, objective: Objective, world: World = SOLO
) -> Callable[[], dict[str, Any]]:
    """A function that evaluates the model on the held-out split; arguments as above.

    It returns what result.json says: "split", the metrics, the number of tokens predicted, and of a
    mixture, "sources" with the metrics of each.
    """
    measure = _evaluation(config, model, dataset, objective, world)

    def result() -> dict[str, Any]:
        values, by_source = measure("heldout", config.evaluation.heldout_tokens)
        metrics = {name: values[name] for name in METRICS}
        sources = {
            source: {**{name: own[name] for name in METRICS}, "heldout_tokens": own["tokens"]}
            for source, own in by_source.items()
        }
        return {
            "split": "heldout",
            **metrics,
            "heldout_tokens": values["tokens"],
            **({"sources": sources} if sources else {}),
        }

    return result


Metrics = dict[str, float]


def _evaluation(
    config: RunConfig, model: Gemma, dataset: Dataset, objective: Objective, world: World
) -> Callable[[str, int | None], tuple[Metrics, dict[str, Metrics]]]:
    """A function from a split and a number of tokens to metrics, and those of each source."""

    def measure_one(folder: Dataset, split: str, max_tokens: int | None) -> Metrics:
        # Whole weights are in fp32. Shards are gathered as training gathers them.
        half = config.runtime.dtype == "bfloat16" and is_sharded(model)
        return evaluate(
            model,
            folder.split(split),
            dataset.tokenizer,
            seq_len=config.data.seq_len,
            batch_size=config.data.micro_batch,
            max_tokens=max_tokens,
            compiled=objective.compiled,
            half=half,
            world=world,
        )

    def measure(split: str, max_tokens: int | None) -> tuple[Metrics, dict[str, Metrics]]:
        if not isinstance(dataset, MixedDataset):
            return measure_one(dataset, split, max_tokens), {}
        share = None if max_tokens is None else max(1, max_tokens // len(dataset.sources))
        by_source = {
            name: measure_one(folder, split, share) for name, folder in dataset.sources.items()
        }
        sizes = [folder.split(split).token_count for folder in dataset.sources.values()]
        return pooled(list(by_source.values()), sizes), by_source

    return measure


def pooled(metrics: Sequence[Metrics], sizes: Sequence[int]) -> Metrics:
    """The metrics of several texts together, each counted by its size.

    Args:
        metrics: what `evaluate` says of each text, or of a part of it.
        sizes: tokens of each text.
    """
    nats = [m["nats_per_token"] * n for m, n in zip(metrics, sizes, strict=True)]
    bits = math.fsum(nats) / math.log(2)
    text_bytes = math.fsum(
        own / math.log(2) / m["bits_per_byte"] if m["bits_per_byte"] else 0.0
        for m, own in zip(metrics, nats, strict=True)
    )
    mean = math.fsum(nats) / sum(sizes)
    return {
        "nats_per_token": mean,
        "perplexity": math.exp(min(mean, 700.0)),
        "bits_per_byte": bits / max(text_bytes, 1.0),
        "tokens": sum(m["tokens"] for m in metrics),
    }
