"""Distil an ONNX teacher of the digits in PyTorch Lightning, whose checkpoints say where the labels go on.

    pip install pytorch-lightning && distillog broker start
    python examples/lightning_loop/train.py teacher.onnx  # waits for labels, and says so
    distillog teach lightning-digits teacher.onnx         # elsewhere, on as many machines as there are

Stop it with Ctrl-C, or kill it, at any moment: started again it goes on after its last checkpoint, bit for bit.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

import distillog

STREAM, RUN = "lightning-digits", "lightning"
CHECKPOINT = Path("lightning-digits/last.ckpt")


class Student(LightningModule):
    """A small network, and what it learns from."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def train_dataloader(self) -> Any:
        """Return all labels; Lightning asks once it knows the device, and which of how many processes this is."""
        # As they are, not in a DataLoader: so Lightning saves their state in its checkpoints, and loads it.
        return distillog.labelled_batches(STREAM, teachers=["teacher"], batch_size=64, run=RUN, device=self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave a batch where it is, on the device; Lightning cannot make another of it."""
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        logits = self.network(batch.inputs["image"])
        loss = distillog.forward_kl(logits, batch.targets["teacher"]["logits"], temperature=2.0)
        step, steps = self.global_step + 1, self.trainer.num_training_batches
        if step % 50 == 0 or step == steps:
            right = (logits.argmax(1) == batch.labels).float().mean()
            print(f"step {step} of {steps}: loss {loss:.4f}, {right:.0%} of the batch right", flush=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return what takes the steps."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)

    def on_train_end(self) -> None:
        """Save what the last steps came to, too."""
        self.trainer.save_checkpoint(CHECKPOINT)


def main(teacher: str) -> None:
    """Train to the end of the stream."""
    distillog.create_stream(STREAM, "digits?split=train", view="affine", epochs=20, order_size=64, partitions=8)
    distillog.add_teacher(STREAM, "teacher", teacher)
    # Work orders are published a little ahead of this fit; `distillog feed` does the same from anywhere.
    threading.Thread(target=distillog.feed, args=[STREAM], kwargs={"follow": [RUN]}, daemon=True).start()

    # Written anew behind each 50th step, and never where a step fails: that batch would count as learned.
    saving = ModelCheckpoint(
        CHECKPOINT.parent, every_n_train_steps=50, save_top_k=0, save_last=True, enable_version_counter=False
    )
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, devices=1, callbacks=[saving], **silent)
    torch.manual_seed(0)
    trainer.fit(Student(), ckpt_path=CHECKPOINT if CHECKPOINT.exists() else None, weights_only=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
