"""One training loop, its optimisers, schedules and objectives."""
