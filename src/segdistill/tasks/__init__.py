"""Tasks: targets, transforms, networks, metrics and pictures of semantic segmentation and its siblings.

:mod:`segdistill.tasks.table` lists them; all other code goes through the recipe's task and names none.
"""
