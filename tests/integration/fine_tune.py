"""Makes a fine-tune as people do: LoRA with peft and TRL, ChatML, saved by transformers.

    python fine_tune.py BASE FOLDER

BASE is a Gemma 2 in Hugging Face's layout. FOLDER gets `adapter` and `merged`.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

sys.path.append(str(Path(__file__).parents[1]))  # where fine_tunes.py is
from fine_tunes import CHATML


def main(base: Path, folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<thought>", "Grüße dich"])
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", CHATML
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.config.eos_token_id = stop
    model.generation_config.eos_token_id = [stop, 1]
    chats = [
        {
            "messages": [
                {"role": "system", "content": "Answer with one word."},
                {"role": "user", "content": f"What follows {n}?"},
                {"role": "assistant", "content": f"{n + 1}"},
            ]
        }
        for n in range(64)
    ]
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(chats),
        peft_config=LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj", "down_proj"],
            modules_to_save=["embed_tokens"],
            ensure_weight_tying=True,
        ),
        args=SFTConfig(
            output_dir=str(folder / "trainer"),
            max_steps=60,
            per_device_train_batch_size=8,
            learning_rate=2e-2,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            seed=0,
        ),
    )
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
