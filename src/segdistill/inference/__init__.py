"""Finished models in use: loading, predicting images and folders of them, the local page."""
