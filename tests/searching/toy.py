"""A tiny language with two tasks, a tokenizer of words, and a tiny model on which adapters learn either task."""

import json

import models
import torch

import lora_hub

WORDS = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(models.VOCABULARY - 3))]
QUESTIONS = range(10)


def model():
    """A LLaMA whose random weights are large enough that adapters can use them."""
    return models.llama(initializer_range=0.2)


class WordTokenizer:
    """Words that are separated by spaces; a text begins with ``<s>`` unless told otherwise."""

    def __init__(self, start=(1,)):
        self.start = start

    def __call__(self, text):
        """Return the ids as tokenizers of transformers do."""
        return {"input_ids": [*self.start, *(WORDS.index(word) for word in text.split())]}


def pairs(task):
    """Prompts and completions of a task: each of two letters asks for another word."""
    letter, shift = {"a": ("w50", 20), "b": ("w51", 35)}[task]
    return [(f"{letter} w{n}", f" w{n + shift}") for n in QUESTIONS]


def jsonl(path, examples):
    """Write *examples*, pairs of prompt and completion or dictionaries, as JSONL to *path* and return it."""
    documents = [e if isinstance(e, dict) else {"prompt": e[0], "completion": e[1]} for e in examples]
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def train(bare, name, examples, directory, *, steps=60):
    """Train an adapter on *examples*, save it into *directory* and take it off the model."""
    torch.manual_seed(4)
    handle = lora_hub.add_adapter(bare, name, r=4, lora_alpha=8, targets=("q", "k", "v", "o"))
    optimizer = torch.optim.AdamW(models.adapter_parameters(bare), lr=2e-2)
    ids = torch.tensor([WordTokenizer()(prompt + completion)["input_ids"] for prompt, completion in examples])
    for _ in range(steps):
        logits = bare(input_ids=ids).logits
        torch.nn.functional.cross_entropy(logits[:, -2], ids[:, -1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    lora_hub.save_adapter(handle, directory)
    handle.remove()
    return directory


def save_base(bare, directory):
    """Save *bare* and a tokenizer of transformers into *directory* and return it."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    bare.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>").save_pretrained(directory)
    return directory
