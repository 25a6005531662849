"""`transformers.Trainer`: checkpoints hold the adapter and only the adapter, and bring it back bit for bit."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_run import AdapterTrainer, arguments, build_model, rows
from transformers import Trainer

import lora_hub
from lora_hub.errors import CompatibilityError, UnsavedAdapterWarning, UsageError

SCRIPT = Path(__file__).with_name("trainer_run.py")


def run(*words):
    """Run a training in a process of its own."""
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=False)


def make_trainer(output, trainer_class=AdapterTrainer, **options):
    """A Trainer over the tiny model."""
    evaluation = rows(32, seed=3) if "eval_strategy" in options else None
    return trainer_class(
        model=build_model(), args=arguments(output, **options), train_dataset=rows(64, seed=2), eval_dataset=evaluation
    )


def test_killed_and_resumed_equals_straight(tmp_path):
    """Four steps, killed, resumed to eight: every bit is that of eight straight steps."""
    straight = run(tmp_path / "straight", 8)
    killed = run(tmp_path / "killed", 8, "kill_at=4")
    resumed = run(tmp_path / "killed", 8, "resume")
    expected = torch.load(tmp_path / "straight" / "final.pt")
    found = torch.load(tmp_path / "killed" / "final.pt")

    assert straight.returncode == resumed.returncode == 0, straight.stderr + resumed.stderr
    assert killed.returncode == -signal.SIGKILL
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpoint_holds_the_adapter_only(tmp_path):
    """A checkpoint is an adapter directory with the Trainer's own state beside it; no weights of the base."""
    make_trainer(tmp_path, max_steps=2).train()
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}

    assert {"adapter_config.json", "adapter_model.safetensors", "lora-hub.json", "optimizer.pt"} <= names
    assert not names & {"model.safetensors", "pytorch_model.bin", "config.json"}


def test_checkpoint_can_be_applied(tmp_path):
    """A checkpoint directory is an adapter like any other."""
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    trained = dict(lora_hub.adapters(trainer.model)["task"].weights().tensors())
    applied = lora_hub.apply_adapter(trainer.model, tmp_path / "checkpoint-2", name="task", replace=True)

    assert all(torch.equal(tensor, trained[name]) for name, tensor in applied.weights().tensors())


def test_best_model_comes_back(tmp_path):
    """`load_best_model_at_end` gives the adapter of the best checkpoint, not of the last."""
    trainer = make_trainer(
        tmp_path, max_steps=8, learning_rate=0.01, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    found = dict(lora_hub.adapters(trainer.model)["task"].weights().tensors())
    saved = lora_hub.apply_adapter(build_model(), best, name="saved", active=False)

    assert best.name != "checkpoint-8"
    assert all(torch.equal(tensor, found[name]) for name, tensor in saved.weights().tensors())


def test_several_adapters_lie_in_folders(tmp_path):
    """With two trainable adapters a checkpoint has a folder for each, and both come back."""
    trainer = make_trainer(tmp_path, max_steps=2)
    lora_hub.add_adapter(trainer.model, "second", targets=("o",))
    trainer.train()
    before = {name: handle.state_digest() for name, handle in lora_hub.adapters(trainer.model).items()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    after = {name: handle.state_digest() for name, handle in lora_hub.adapters(trainer.model).items()}

    assert (tmp_path / "checkpoint-2" / "second" / "adapter_config.json").is_file()
    assert after == before


def test_plain_trainer_warns(tmp_path):
    """A plain Trainer on a patched model saves the base only: it warns, and names the mixin."""
    with pytest.warns(UnsavedAdapterWarning, match="AdapterTrainerMixin"):
        make_trainer(tmp_path, Trainer, max_steps=2).train()


@pytest.mark.parametrize("other_kind", [{"targets": ("k",)}, {"r": 2}, {"lora_alpha": 64}, {"use_rslora": True}])
def test_resuming_another_adapter_is_refused(tmp_path, other_kind):
    """A checkpoint of an adapter with other modules, ranks or scaling is refused; the parameters stay as they are."""
    make_trainer(tmp_path, max_steps=2).train()
    other = make_trainer(tmp_path, max_steps=4)
    options = {"r": 4, "modules_to_save": ("classifier",)} | other_kind
    handle = lora_hub.add_adapter(other.model, "task", replace=True, **options)
    before = handle.state_digest()

    with pytest.raises(CompatibilityError, match="another kind"):
        other.train(resume_from_checkpoint=True)
    assert handle.state_digest() == before


def test_trainer_of_another_model_is_refused(tmp_path):
    """If the adapter is not on the model that the Trainer has, this is said before the training, not after it."""
    trainer = make_trainer(tmp_path)
    lora_hub.adapters(trainer.model)["task"].remove()
    lora_hub.add_adapter(trainer.model.bert, "task")

    with pytest.raises(UsageError, match="no trainable adapter"):
        trainer.train()
