"""One training run in a process of its own: ``trainer_run.py OUTPUT_DIR STEPS [kill_at=N] [resume]``."""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import lora_hub

torch.set_num_threads(1)


class AdapterTrainer(lora_hub.AdapterTrainerMixin, Trainer):
    """A Trainer whose checkpoints hold the adapter."""


class KillAt(TrainerCallback):
    """Kill the process right after the checkpoint of one step, as a power cut would."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        """Called by Trainer after each checkpoint."""
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def build_model():
    """A tiny BERT classifier under a trainable adapter with dropout, so that the state of the RNG counts as well."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=3,
        max_position_embeddings=32,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    lora_hub.add_adapter(model, "task", r=4, lora_dropout=0.1, modules_to_save=("classifier",))
    return model


def rows(count, seed):
    """Random token ids with labels that can be learned: the sum of the ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 61, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row.sum() % 3} for row in ids]


def arguments(output, **options):
    """Arguments of a run on the CPU that saves every second step."""
    settings = {"max_steps": 8, "save_steps": 2, "save_strategy": "steps", "learning_rate": 1e-2} | options
    return TrainingArguments(
        output_dir=str(output), per_device_train_batch_size=4, use_cpu=True, seed=1, report_to=[],
        disable_tqdm=True, logging_strategy="no", lr_scheduler_type="constant", dataloader_pin_memory=False, **settings,
    )  # fmt: skip


def main(output, steps, *flags):
    """Train, and write the adapter's tensors to ``OUTPUT_DIR/final.pt``."""
    model = build_model()
    kills = [int(flag.removeprefix("kill_at=")) for flag in flags if flag.startswith("kill_at=")]
    trainer = AdapterTrainer(
        model=model,
        args=arguments(output, max_steps=int(steps)),
        train_dataset=rows(64, seed=2),
        callbacks=[KillAt(step) for step in kills],
    )
    trainer.train(resume_from_checkpoint="resume" in flags)
    torch.save(dict(lora_hub.adapters(model)["task"].weights().tensors()), Path(output) / "final.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
