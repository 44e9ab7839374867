"""Finished segmenters as ONNX and torch.export files, checked on real pixels before they are written.

==================  ====================================================================================
:mod:`.graph`       the network as it is exported: 8-bit pixels in, classes and confidence out
:mod:`.onnx_file`   tracing, ONNX, half precision, INT8, and how the files are run
:mod:`.check`       the comparison with the segmenter, domain by domain
:mod:`.ship`        ``segdistill export``
==================  ====================================================================================
"""

from __future__ import annotations

from segdistill.export.ship import export, report_path, summary_rows

__all__ = ["export", "report_path", "summary_rows"]
