"""The training loop, its optimizers and schedules, objectives, and kinds of runs."""
