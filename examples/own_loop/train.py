"""Distil an ONNX teacher of the digits in a training loop of one's own, in plain PyTorch.

    distillog broker start
    python examples/own_loop/train.py teacher.onnx        # waits for labels, and says so
    distillog teach own-digits teacher.onnx               # elsewhere, on as many machines as there are

Stop it with Ctrl-C, or kill it, at any moment: started again it goes on after its last checkpoint, bit for bit.
"""

import sys
import threading
from pathlib import Path

import torch
from torch import nn

import distillog

STREAM, RUN = "own-digits", "own"
CHECKPOINT = Path("own-digits.pt")


def main(teacher: str) -> None:
    """Train to the end of the stream."""
    distillog.create_stream(STREAM, "digits?split=train", view="affine", epochs=20, order_size=64, partitions=8)
    distillog.add_teacher(STREAM, "teacher", teacher)
    # Work orders are published a little ahead of this loop; `distillog feed` does the same from anywhere.
    threading.Thread(target=distillog.feed, args=[STREAM], kwargs={"follow": [RUN]}, daemon=True).start()

    labels = distillog.labelled_batches(STREAM, teachers=["teacher"], batch_size=64, run=RUN, loaders=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(labels.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    step = 0
    if CHECKPOINT.exists():
        saved = torch.load(CHECKPOINT, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        labels.load_state_dict(saved["labels"])
        step = saved["step"]

    for batch in labels:
        logits = model(batch.inputs["image"])
        loss = distillog.forward_kl(logits, batch.targets["teacher"]["logits"], temperature=2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 50 == 0 or step == len(labels):
            right = (logits.argmax(1) == batch.labels).float().mean()
            print(f"step {step} of {len(labels)}: loss {loss:.4f}, {right:.0%} of the batch right", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state | {"labels": labels.state_dict()}, CHECKPOINT.with_suffix(".new"))
            CHECKPOINT.with_suffix(".new").replace(CHECKPOINT)


if __name__ == "__main__":
    main(*sys.argv[1:2])
