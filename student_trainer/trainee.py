"""A student in training: the network, its optimizer, and one step of it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.hashing import hash_int, tag
from student_trainer.batches import Batch
from student_trainer.losses import total_loss
from student_trainer.optimizers import build_optimizer
from student_trainer.schedules import build_schedule
from student_trainer.settings import RunSettings
from student_trainer.students import Network, build_student

_STEP = tag("student_trainer.step")
_MASK = (1 << 63) - 1
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainee:
    """Everything that a step reads and changes; its state is that of a checkpoint."""

    def __init__(
        self,
        settings: RunSettings,
        network: Network,
        total_steps: int,
        labelled_fraction: float,
        device: torch.device,
    ) -> None:
        train = settings.train
        self.field = network.field
        self.device = device
        self.model: nn.Module = build_student(settings.student, network, train.seed).to(device).train()
        self.optimizer = build_optimizer(settings.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self._schedule = build_schedule(settings.schedule, total_steps)
        self._loss = total_loss(settings, labelled_fraction)
        self._half = _HALVES.get(train.precision)
        self._lr = settings.optimizer.lr
        self._seeds = hash_int(train.seed, _STEP)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self._lr * self._schedule(step)

    def take_step(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Learn from a batch; return the total loss and each of its terms, on the device."""
        if self.device.type != "cpu":
            batch = batch.to(self.device)
        # Dropout's randomness is a function of (seed, step), so that a resumed run needs no generator's state.
        seed = (self._seeds + step) & _MASK
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at every backend first: 60 us
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        lr = self.lr(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        if self._half is None:
            logits = self.model(batch.inputs[self.field])
        else:
            with torch.autocast(self.device.type, self._half):
                logits = self.model(batch.inputs[self.field])
        loss, terms = self._loss(logits, batch.targets, batch.labels)
        if self._half is torch.float16:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return loss, terms

    def state(self) -> dict[str, Any]:
        """Return the state dicts: weights with buffers, optimizer, gradient scaler."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Undo `state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def weights_sha256(model: nn.Module) -> str:
    """Return the hex SHA-256 over the state dict's names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        # Through bytes, since NumPy knows no bfloat16; a scalar has no bytes to view, so it becomes a row first.
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
