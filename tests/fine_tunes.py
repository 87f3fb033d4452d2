"""Fine-tunes with added tokens, a chat template and stop ids, saved by transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you, Ada?"},
]
TEXTS = [
    "import textwrap\n\n\tdef wrap(self, text):",
    "a<|im_start|>b <|im_end|>\n<|im_end|><|im_end",
    "x <thought> y<thought>",
    "<start_of_turn>user<end_of_turn>",
]


def make_fine_tune(base: Path, folder: Path, rows: int = 8) -> Path:
    """A ChatML model of `base` as transformers saves it; rows of the embedding: a multiple."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<thought>"])
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", CHATML
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=rows, mean_resizing=False)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.config.eos_token_id = stop
    model.generation_config.eos_token_id = [stop, 1]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed(folder: Path, to: Path, change: Callable[[Path], None]) -> Path:
    """A copy of a model after `change`."""
    shutil.copytree(folder, to)
    change(to)
    return to


def edit_json(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; a value of ... removes the key."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


class Theirs:
    """transformers' reading of a folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation that is to be answered."""
        ids: list[int] = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return ids

    def continuation(self, ids: list[int], count: int) -> list[int]:
        """The most likely continuation, with its stop token if it has one."""
        prompt = torch.tensor([ids])
        out = self.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False
        )
        new: list[int] = out[0, len(ids) :].tolist()
        return new

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The most likely continuation, up to and without a stop token."""
        out = self.continuation(ids, count)
        stops = self.model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        return out[:-1] if out[-1] in stops else out

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Logits of one sequence [T, V]."""
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0]
