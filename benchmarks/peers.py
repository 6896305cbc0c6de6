"""The peers' own scripts, as in their documentation; started by `train.py` and `startup.py`.

    python benchmarks/peers.py VARIANT DATA MODEL OUT BATCH MAX_LENGTH RATE

VARIANT is TRL, "TRL packing" or Trainer. The last line printed is the training loss.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def settings(out: str, batch: int, rate: float) -> dict[str, Any]:
    """Arguments common to all peers."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": out, "per_device_train_batch_size": batch, "num_train_epochs": 1, "bf16": True, "use_cpu": not cuda,
        "learning_rate": rate, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "seed": 0, "gradient_checkpointing": False,
    }  # fmt: skip


LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


# for models that come without a template
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_of(model: str) -> Any:
    """The model's tokenizer, with a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    return tokenizer


def conversations(data: str) -> Any:
    """Rows as prompt and completion messages."""
    from datasets import load_dataset

    def convert(row: dict[str, str]) -> dict[str, Any]:
        asked = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
        return {
            "prompt": [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }

    rows = load_dataset("json", data_files=data, split="train")
    return rows.map(convert, remove_columns=rows.column_names)


def trl(data: str, model: str, out: str, batch: int, length: int, rate: float, packing: bool) -> float:
    """TRL's SFTTrainer with its defaults, packed or not."""
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**settings(out, batch // 4 if packing else batch, rate), max_length=length, packing=packing)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
        args=arguments,
        train_dataset=conversations(data),
        processing_class=tokenizer_of(model),
        peft_config=LoraConfig(**LORA),
    )
    return trainer.train().metrics["train_loss"]


def plain(data: str, model: str, out: str, batch: int, length: int, rate: float) -> float:
    """transformers.Trainer with its own loss over padded batches, with labels only for answers."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = tokenizer_of(model)

    def tokenize(row: dict[str, Any]) -> dict[str, list[int]]:
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"][:length]
        start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        return {
            "input_ids": ids,
            "labels": [-100] * min(start, len(ids)) + ids[start:],
            "attention_mask": [1] * len(ids),
        }

    rows = conversations(data).map(tokenize, remove_columns=["prompt", "completion"])
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    trainer = Trainer(
        get_peft_model(base, LoraConfig(**LORA)),
        TrainingArguments(**settings(out, batch, rate)),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )
    return trainer.train().metrics["train_loss"]


def main() -> None:
    variant, data, model, out = sys.argv[1:5]
    batch, length, rate = int(sys.argv[5]), int(sys.argv[6]), float(sys.argv[7])
    if variant == "Trainer":
        print("loss", plain(data, model, out, batch, length, rate))
    else:
        print("loss", trl(data, model, out, batch, length, rate, packing=variant == "TRL packing"))


if __name__ == "__main__":
    main()
