"""The one loop, the optimiser's groups and schedules, checkpoints."""
