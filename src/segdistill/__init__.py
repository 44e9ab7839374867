"""segdistill: small segmentation models that keep a foundation model's robustness.

Importing this package imports no torch; modules are imported where they are needed.
"""

__version__ = "0.1.0"
