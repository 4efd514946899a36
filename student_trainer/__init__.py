"""Students learn here: the soft-target reader, losses, students, the training loop, checkpoints, evaluation, export."""
