"""Runs a recipe: the plan, the stages in a run folder, the scores, and scoring again later."""
