"""lm-eval: local-completions gives the log-likelihoods of `--model gemmule`, to the bit.

GEMMULE_FOLDER is the folder of the model that the server serves as GEMMULE_MODEL.
"""

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  registers its own first
from checking import MODEL, URL, run
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from gemmule.evals.lm_eval_model import register

register()
FOLDER = os.environ["GEMMULE_FOLDER"]
CHOICE = """\
task: made_up_choice
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {file}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
"""
GENERATION = """\
task: made_up_generation
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {file}}}
output_type: generate_until
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: ["\\n\\n"]
  max_gen_toks: 12
  temperature: 0
metric_list:
  - metric: exact_match
"""


def tasks() -> TaskManager:
    """Two tasks over rows that are drawn here."""
    folder = Path(tempfile.mkdtemp())
    draw = random.Random(0)
    words = ["the", "sea", "old", "answer", "of", "water", "a", "light", "return", "value"]
    rows = [
        {
            "question": " ".join(draw.choices(words, k=draw.randint(3, 20))),
            "choices": [" ".join(draw.choices(words, k=draw.randint(1, 8))) for _ in range(4)],
            "gold": draw.randrange(4),
        }
        for _ in range(12)
    ]
    (folder / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("generation", GENERATION)):
        (folder / f"{name}.yaml").write_text(text.format(file=folder / "rows.json"))
    return TaskManager(include_path=os.fspath(folder), include_defaults=False)


def answers(model: str, args: dict[str, Any], task: str, **more: Any) -> list[Any]:
    """What a model answered to each document of a task."""
    result = simple_evaluate(
        model=model, model_args=args, tasks=[task], task_manager=tasks(), log_samples=True,
        bootstrap_iters=0, **more,
    )  # fmt: skip
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


def log_likelihoods() -> None:
    ours = answers("gemmule", {"pretrained": FOLDER}, "made_up_choice", batch_size=8)
    for concurrent, batch in ((1, 1), (4, 8)):
        theirs = answers(
            "local-completions",
            {
                "model": MODEL, "base_url": f"{URL}/v1/completions", "tokenizer": FOLDER,
                "tokenizer_backend": "huggingface", "tokenized_requests": True,
                "add_bos_token": True, "num_concurrent": concurrent, "max_length": 256,
            },
            "made_up_choice", batch_size=batch,
        )  # fmt: skip
        assert len(ours) == 12
        assert ours == theirs, (ours[0], theirs[0])


def generations() -> None:
    ours = answers("gemmule", {"pretrained": FOLDER}, "made_up_generation", batch_size=8)
    theirs = answers(
        "local-completions",
        {
            "model": MODEL, "base_url": f"{URL}/v1/completions", "tokenizer": FOLDER,
            "tokenizer_backend": "huggingface", "tokenized_requests": True,
            "add_bos_token": True, "num_concurrent": 4, "max_length": 256,
        },
        "made_up_generation",
    )  # fmt: skip
    assert ours == theirs, (ours, theirs)


def chat() -> None:
    replies = answers(
        "local-chat-completions",
        {"model": MODEL, "base_url": f"{URL}/v1/chat/completions", "num_concurrent": 2},
        "made_up_generation", apply_chat_template=True,
    )  # fmt: skip
    assert len(replies) == 12


run("lm_eval", {
    "log-likelihoods": log_likelihoods, "generations": generations, "chat": chat,
})  # fmt: skip
