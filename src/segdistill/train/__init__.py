"""The training loop, optimisers with parameter groups and schedules, and checkpoints."""
