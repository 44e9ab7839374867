"""Predicted scores on images without labels, from a line through domains that have some."""
