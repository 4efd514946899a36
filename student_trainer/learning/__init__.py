"""What learns, and by what: students, losses, optimizers, schedules, and one step of training."""
