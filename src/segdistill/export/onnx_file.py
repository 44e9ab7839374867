"""ONNX files: traced by torch's dynamo exporter, in half precision, quantised, and run by onnxruntime."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from segdistill.config import UserError
from segdistill.export.boxes import translations
from segdistill.export.graph import Graph, exportable

LARGEST = 2**31 - 2**24  # bytes of one protobuf file
AXES = ("batch", "height", "width")
Pixels = NDArray[np.uint8]
Answer = tuple[NDArray[Any], ...]
"""The outputs of a graph: classes and confidence (N, H, W), or those of objects; see :mod:`.graph`, :mod:`.boxes`."""

Runner = Callable[[Pixels], Any]
"""Images (N, H, W, 3) -> an answer; of the network itself, of objects: a list of Detections."""


def need_extra() -> None:
    """A :class:`UserError` where the packages of the extra ``export`` are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs {error.name}: install segdistill[export]") from None


def trace(graph: Graph, size: tuple[int, int]) -> ExportedProgram:
    """The program of ``graph``, traced on images of ``size`` (h, w), for any number of images of any size.

    Raises whatever torch raises where the network does not allow that.
    """
    pair = torch.zeros(2, *size, 3, dtype=torch.uint8)  # an example of one would be taken for always one
    least = graph.smallest if graph.size is None else 1
    free = {0: Dim("batch", min=1), 1: Dim("height", min=least), 2: Dim("width", min=least)}
    with torch.no_grad(), exportable(graph.encoder):
        return torch.export.export(
            graph,
            (pair,),
            dynamic_shapes={"image": free},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def to_onnx(program: ExportedProgram, about: Mapping[str, Any], outputs: Sequence[str]) -> Any:
    """The program as an ONNX model (opset 20) whose metadata has ``about`` as JSON under ``segdistill``."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=20,
            input_names=["image"],
            output_names=list(outputs),
            optimize=False,
            verbose=False,
            custom_translation_table=translations(),
        )
        assert converted is not None
        # The optimiser ends with this pass, too. With free sizes most nodes compute a size that another one has, and
        # its rules try every node.
        CommonSubexpressionEliminationPass()(converted.model)
        converted.optimize()
    model = converted.model_proto
    _name_axes(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = "segdistill", json.dumps(about, sort_keys=True, ensure_ascii=False)
    if model.ByteSize() > LARGEST:
        raise UserError("the graph is larger than 2 GB, which one ONNX file cannot hold; export it as model.pt2")
    return model


def _name_axes(model: Any) -> None:
    """Give the free axes of input and outputs their names."""
    first = model.graph.input[0].type.tensor_type.shape.dim
    names = {dim.dim_param: axis for dim, axis in zip(first, AXES, strict=False) if dim.dim_param}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def operators(model: Any) -> dict[str, int]:
    """How often each operator stands in the graph and its functions."""
    counts: dict[str, int] = {}
    for part in (model.graph, *model.functions):
        for node in part.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def to_half(model: Any) -> Any:
    """The model in float16, but for its inputs and outputs and for operators that have no such form."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = type(model)()
    copy.CopyFrom(model)
    with _quiet():
        return convert_float_to_float16(copy, keep_io_types=True)


def to_int8(model: Any, images: Iterable[Pixels]) -> Any:
    """The model with convolutions and matrix products in 8 bits, ranges from ``images`` (1, H, W, 3 each).

    Weights per channel, activations as the smallest and largest values that the images gave (onnxruntime's MinMax).
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """One image after the other."""

        def __init__(self) -> None:
            self.rest: Iterator[Pixels] = iter(images)

        def get_next(self) -> Any:  # an input, or None at the end
            image = next(self.rest, None)
            return None if image is None else {"image": image}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, prepared, quantised = (str(Path(folder, name)) for name in ("fp32.onnx", "prepared.onnx", "int8.onnx"))
        onnx.save(model, given)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            Reader(),
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(quantised)


def onnx_runner(content: bytes) -> Runner:
    """Runs an ONNX file with onnxruntime on the CPU, on as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Pixels) -> Answer:
        return tuple(np.asarray(part) for part in session.run(None, {"image": images}))

    return run


def program_runner(content: Any) -> Runner:
    """Runs a ``.pt2`` file, read from ``content`` (a binary file)."""
    module = torch.export.load(content).module()

    def run(images: Pixels) -> Answer:
        with torch.inference_mode():
            return tuple(part.numpy() for part in module(torch.from_numpy(np.array(images))))

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converters log: their complaints about single operators say nothing to a user."""
    names = ("", "onnxscript", "onnx_ir", "torch.onnx", "onnxruntime")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
