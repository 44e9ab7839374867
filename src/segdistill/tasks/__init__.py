"""What is learned: targets, transforms, networks, metrics and pictures of semantic segmentation and its siblings.

:mod:`segdistill.tasks.table` lists them; everything else asks the task of the recipe and knows none by name.
"""
