"""A tiny language with two tasks, a word tokenizer, and a tiny model that adapters can learn either task on."""

import json

import models
import torch

import lora_hub

WORDS = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(models.VOCABULARY - 3))]
QUESTIONS = range(10)


class WordTokenizer:
    """Words that are separated by spaces; a text begins with ``<s>``."""

    def __call__(self, text):
        return {"input_ids": [1, *(WORDS.index(word) for word in text.split())]}


def pairs(task):
    """Prompts and completions of a task: after `a wN` comes one word, after `b wN` another one."""
    letter, shift = {"a": ("w50", 20), "b": ("w51", 35)}[task]
    return [(f"{letter} w{n}", f" w{n + shift}") for n in QUESTIONS]


def jsonl(path, examples):
    """Write *examples*, pairs of prompt and completion, as JSONL to *path* and return it."""
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in examples]
    path.write_text("\n".join(lines) + "\n")
    return path


def train(model, name, examples, directory, *, steps=60):
    """Train an adapter on *examples*, save it into *directory* and take it off the model."""
    torch.manual_seed(len(name))
    handle = lora_hub.add_adapter(model, name, r=4, lora_alpha=8, targets=("q", "k", "v", "o"))
    optimizer = torch.optim.AdamW(models.adapter_parameters(model), lr=2e-2)
    tokenizer = WordTokenizer()
    ids = torch.tensor([tokenizer(prompt + completion)["input_ids"] for prompt, completion in examples])
    for _ in range(steps):
        logits = model(input_ids=ids).logits
        torch.nn.functional.cross_entropy(logits[:, -2], ids[:, -1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    lora_hub.save_adapter(handle, directory)
    handle.remove()
    return directory
