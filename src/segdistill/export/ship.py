"""``segdistill export``: from a run folder or a packed file to checked files for other runtimes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdistill import environment
from segdistill.config import UserError, expanded, first_line
from segdistill.data.dataset import DataSelection, Dataset, DataSource
from segdistill.encoders import record_of
from segdistill.export.boxes import BoxGraph
from segdistill.export.check import Domain, MapTally, Tally, View, compare, disagreeing, latencies, torch_runner
from segdistill.export.graph import Graph, ObjectGraph
from segdistill.export.objects import Decoder, ObjectTally, boxes_found, object_runner
from segdistill.export.onnx_file import (
    Pixels,
    Runner,
    need_extra,
    onnx_runner,
    operators,
    program_runner,
    to_half,
    to_int8,
    to_onnx,
    trace,
)
from segdistill.files import sha256, write_bytes, write_json
from segdistill.metrics.boxes import BoxMetric
from segdistill.metrics.instances import InstanceMetric
from segdistill.models import Detector, InstanceSegmenter, Model, as_segmenter, fit
from segdistill.models.segmenter import Window
from segdistill.recipe import Recipe, last_task
from segdistill.runlog import Quiet, Watcher
from segdistill.sharing.card import kinds_of
from segdistill.sharing.pack import check_free, load_packed, model_in, open_run, packed_path, recipe_in, with_root
from segdistill.sharing.packed import state_of, tensors_digest
from segdistill.tasks.table import TASKS

OUTPUTS = {
    "semantic": {
        "classes": "uint8 (batch, height, width)",
        "confidence": "float32 (batch, height, width), 0 to 1",
    },
    "instance": {
        "scores": "float32 (batch, queries, classes), 0 to 1: class probabilities",
        "masks": "float32 (batch, queries, rows, columns): mask logits over the network's input, padded at the bottom "
        "and right to multiples of 'cell' pixels",
    },
    "detection": {
        "boxes": "float32 (batch, boxes, 4): left, top, right and bottom in pixels of the image",
        "scores": "float32 (batch, boxes), 0 to 1, descending; 0: no box",
        "labels": "int64 (batch, boxes): indices of classes",
    },
}
GRAPHS: dict[type[Model], type[Graph]] = {InstanceSegmenter: ObjectGraph, Detector: BoxGraph}
PRECISIONS = {"fp32": "", "fp16": ".fp16", "int8": ".int8"}
FORMATS = (".onnx", ".pt2")
EXPORTED = (
    "known to export: ViT, DINOv2, DINOv3, DeiT, SAM, Swin, ConvNeXt; with semfpn, mask2former, masked_dpt, faster_rcnn"
)


@dataclass(frozen=True)
class Options:
    """What is exported and how it is checked; see :func:`export`."""

    size: tuple[int, int] | None = None
    fp16: bool = False
    int8: bool = False
    images: int = 16
    calibration: int = 32
    root: Path | None = None


def export(
    what: str | Path,
    out: str | Path,
    *,
    role: str | None = None,
    size: tuple[int, int] | None = None,
    fp16: bool = False,
    int8: bool = False,
    images: int = 16,
    calibration: int = 32,
    root: str | Path | None = None,
    force: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Write the network of a run folder, a packed file or ``hf:<owner>/<name>`` to ``out`` (.onnx or .pt2).

    ``size`` (h, w) is the network's; without it images keep their own size where the network allows it, else they get
    that of the evaluation. ``fp16`` and ``int8`` add files in lower precision, INT8 with the ranges of ``calibration``
    source images. Before anything is written, the files are compared with the network on ``images`` images of every
    domain of the run's evaluation, which are looked for below ``root``. Returns the report, which stands beside
    the file as JSON. A :class:`UserError` where fewer than 99.9 % of the full-precision file's labels, or 99 % of its
    detections, are equal.
    """
    options = Options(size, fp16, int8, images, calibration, None if root is None else Path(root))
    out, watcher = Path(out), watcher or Quiet()
    paths = _check(out, options, force=force)
    network, header, recipe = _open(what, role, options)
    if isinstance(network, Detector) and out.suffix != ".onnx":
        raise UserError(
            f"a detector is exported as ONNX, which has an operator for suppression; name it {out.stem}.onnx"
        )
    domains = _domains(recipe, header, options, watcher)
    example = np.asarray(domains[0].dataset[0].image)
    watcher.work("tracing the network", 0, 1)
    view, program, why = _trace(network, header, options, example)
    watcher.work("tracing the network", 1, 1)
    about = _about(header, view, network)
    ranges = partial(_source_images, recipe, options, watcher)
    contents, counts = _contents(program, out.suffix, options, about, ranges)
    runners = {name: _runner(name, content, out.suffix) for name, content in contents.items()}
    reference, tally = _reference(network, view)
    rows = compare(runners, reference, domains, tally, watcher.work)
    kind = tally()
    if bad := disagreeing(rows["fp32"], kind.least):
        worst = min(bad, key=lambda row: row.equal)
        raise UserError(
            f"the exported graph gives other {kind.what} than the network: {100 * worst.equal:.2f} % are equal on "
            f"{worst.domain} (at least {100 * kind.least:g} % must be); nothing was written. Report it with the "
            "encoder's name"
        )
    primary = TASKS[header["task"]].primary
    report = about | {
        "what": str(header["name"]),
        "note": why,
        "equal": kind.about,
        "operators": counts,
        "domains": {name: [row.as_dict(primary) for row in each] for name, each in rows.items()},
        "latency_ms": latencies({"torch": reference, **runners}, example[None]),
        "latency_image": [*example.shape[:2]],
        "latency_threads": torch.get_num_threads(),
        "environment": environment.describe() | _versions(),
    }
    for name, content in contents.items():
        write_bytes(paths[name], content)
    sizes = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in paths.items()}
    report["files"] = {paths[name].name: facts | {"precision": name} for name, facts in sizes.items()}
    write_json(report_path(out), report)
    return report


def report_path(out: Path) -> Path:
    """The report beside an exported file: ``model.onnx.json``."""
    return out.with_name(f"{out.name}.json")


def _check(out: Path, options: Options, *, force: bool) -> dict[str, Path]:
    """The files that will be written, by precision."""
    if out.suffix not in FORMATS:
        raise UserError(f"cannot write '{out.name}': name it with {' or '.join(FORMATS)}")
    if out.suffix == ".pt2" and (options.fp16 or options.int8):
        raise UserError("fp16 and int8 are forms of an ONNX file; name it model.onnx")
    if out.suffix == ".onnx":
        need_extra()
    if options.size is not None and min(options.size) < 1:
        raise UserError(f"size is a height and a width in pixels, got {options.size}")
    if min(options.images, options.calibration) < 1:
        given = f"{options.images} and {options.calibration}"
        raise UserError(f"images and calibration are numbers of images, at least 1, got {given}")
    wanted = {"fp32": True, "fp16": options.fp16, "int8": options.int8}
    paths = {name: out.with_suffix(f"{PRECISIONS[name]}{out.suffix}") for name, on in wanted.items() if on}
    check_free((*paths.values(), report_path(out)), force=force)
    return paths


def _open(what: str | Path, role: str | None, options: Options) -> tuple[Model, dict[str, Any], Recipe]:
    """The network, what a packed file says of it, and the recipe of its images."""
    run = expanded(what)
    if not str(what).startswith("hf:") and (run / "recipe.yaml").is_file():
        finished = open_run(run)
        network, header = model_in(finished, role)
        header["tensors_sha256"] = tensors_digest(state_of(network))
        return network, header, with_root(finished.recipe, options.root)
    if role is not None:
        raise UserError("--role is for run folders; a packed file holds one network")
    path = packed_path(what)
    network, header = load_packed(path)
    header.setdefault("task", "semantic")
    return network, header, recipe_in(header, options.root)


def _domains(recipe: Recipe, header: Mapping[str, Any], options: Options, watcher: Watcher) -> list[Domain]:
    """The images to compare on: of the evaluation's domains, else those that the head was trained on."""
    config, source = recipe.evaluate, recipe.scored_source
    if config is None:
        selection = _trained_on(recipe)
        dataset = _read(recipe.data, selection, watcher)
        return [Domain(selection.domains[0], "source", dataset, min(options.images, len(dataset)))]
    kinds = kinds_of(header)
    found = []
    for name in config.domains:
        dataset = _read(source, config.selection(source, name), watcher)
        found.append(Domain(name, kinds.get(name, "source"), dataset, min(options.images, len(dataset))))
    return found


def _read(source: DataSource, selection: DataSelection, watcher: Watcher) -> Dataset:
    try:
        return source.open(selection, watcher.work)
    except UserError as error:
        raise UserError(f"a graph is compared on real images: {error}; give --root FOLDER") from None


def _trained_on(recipe: Recipe) -> DataSelection:
    return last_task(recipe, "export").data


def _source_images(recipe: Recipe, options: Options, watcher: Watcher) -> list[Pixels]:
    """Images that the head was trained on, evenly spread, (1, H, W, 3) each."""
    dataset = _read(recipe.data, _trained_on(recipe), watcher)
    step = max(1, math.ceil(len(dataset) / options.calibration))
    return [np.asarray(dataset[row].image)[None] for row in range(0, len(dataset), step)]


def _reference(network: Model, view: View) -> tuple[Runner, Callable[[], Tally]]:
    """The network itself, and what graphs are compared by."""
    if isinstance(network, Detector):
        return object_runner(network, view), partial(ObjectTally, network.num_classes, boxes_found, BoxMetric)
    if isinstance(network, InstanceSegmenter):
        decoder = Decoder(network.encoder.padded, view.size)
        return object_runner(network, view), partial(ObjectTally, network.num_classes, decoder, InstanceMetric)
    return torch_runner(as_segmenter(network, "export"), view), partial(MapTally, network.num_classes)


def _graph_of(network: Model) -> type[Graph]:
    return next((graph for kind, graph in GRAPHS.items() if isinstance(network, kind)), Graph)


def _trace(network: Model, header: Mapping[str, Any], options: Options, example: Pixels) -> tuple[View, Any, str]:
    """The program, how it sees images, and why its size is fixed, where it is."""
    resize, window = (header["preprocessing"][key] for key in ("resize", "window"))
    graph = _graph_of(network)
    window = window if graph is Graph else None  # objects are seen whole
    seen = None if window is None else Window(**window)
    own = (example.shape[0], example.shape[1])
    size, why = None, ""
    if options.size is not None:
        size, why = options.size, "it was asked for"
    elif resize is not None or window is not None:
        size = own if resize is None else fit(own, (resize[0], resize[1]))
        why = "the evaluation fits images into a size or sees them through windows"
    elif min(own) < graph.smallest:
        size, why = own, f"the run's images are smaller than {graph.smallest} pixels"
    elif not (record := record_of(header["model"]["encoder"]["name"])).flexible:
        size, why = own, f"{record.timm_name} takes images of one size"
    if size is None:
        try:
            return View(), trace(graph(network), own), ""
        except Exception as error:  # noqa: BLE001  what torch raises here has no common class; the report says it
            size, why = own, f"free sizes cannot be traced ({type(error).__name__}: {first_line(error)})"
    with said("torch cannot export this network", EXPORTED):
        return View(size, seen), trace(graph(network, size, seen), own), why


@contextmanager
def said(what: str, instead: str = "") -> Iterator[None]:
    """Turns whatever a converter or runtime raises inside into one line; ``instead`` is what can be done."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{what} ({type(error).__name__}: {first_line(error)}); nothing was written{'; ' * bool(instead)}{instead}"
        ) from error


def _about(header: Mapping[str, Any], view: View, network: Model) -> dict[str, Any]:
    """What a graph says of itself: its interface, classes, and what it was made from."""
    window = None if view.window is None else {"size": list(view.window.size), "stride": list(view.window.stride)}
    size = None if view.size is None else list(view.size)
    return {
        "input": {
            "image": "uint8 (batch, height, width, 3), RGB",
            "smallest_side": _graph_of(network).smallest if view.size is None else 1,
        },
        "task": header["task"],
        "outputs": OUTPUTS[header["task"]],
        "network_size": size or "that of the image",
        "window": window,
        "cell": network.encoder.patch,
        "classes": list(header["classes"]),
        "colors": header["colors"],
        "licence": header["licence"],
        "source": {"name": header["name"], "role": header["role"], "tensors_sha256": header["tensors_sha256"]},
    }


def _contents(
    program: torch.export.ExportedProgram,
    suffix: str,
    options: Options,
    about: Mapping[str, Any],
    calibration: Callable[[], list[Pixels]],
) -> tuple[dict[str, bytes], dict[str, int]]:
    """The files by precision, and how often each operator stands in the first one."""
    if suffix == ".pt2":
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        nodes = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        return {"fp32": buffer.getvalue()}, {name: nodes.count(name) for name in sorted(set(nodes))}
    with said("this network cannot be converted to ONNX", f"{EXPORTED}; model.pt2 needs no ONNX"):
        model = to_onnx(program, about, list(about["outputs"]))
        contents = {"fp32": model.SerializeToString()}
    if options.fp16:
        with said("the graph cannot be converted to fp16", "omit --fp16"):
            contents["fp16"] = to_half(model).SerializeToString()
    if options.int8:
        images = calibration()
        with said("the graph cannot be converted to int8", "omit --int8"):
            contents["int8"] = to_int8(model, images).SerializeToString()
    return contents, operators(model)


def _runner(name: str, content: bytes, suffix: str) -> Runner:
    with said(f"the {name} graph does not run here"):
        return onnx_runner(content) if suffix == ".onnx" else program_runner(io.BytesIO(content))


def _versions() -> dict[str, str]:
    """Of the packages that made the graph."""
    found = {}
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def summary_rows(report: Mapping[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """The report as two tables, heads first: every file on every domain, and every file's size and speed."""
    task = TASKS[report["task"]]
    primary, label = task.primary, task.metrics[task.primary]["label"]
    first = [["file", "domain", "kind", "images", "equal (%)", "max diff.", label, "of torch", "loss"]]
    for precision, rows in report["domains"].items():
        for row in rows:
            own, other = row[primary], row[f"torch_{primary}"]
            scores = (
                [f"{100 * own:.2f}", f"{100 * other:.2f}", f"{100 * (other - own):+.2f}"]
                if own is not None and other is not None
                else ["-"] * 3
            )
            first.append(
                [precision, row["domain"], row["kind"], str(row["images"]), f"{100 * row['equal']:.3f}",
                 f"{row['difference']:.1e}", *scores]
            )  # fmt: skip
    speed = report["latency_ms"]
    second = [["file", "MiB", "ms per image", "torch / this"]]
    for name, facts in report["files"].items():
        own = speed[facts["precision"]]
        second.append([name, f"{facts['bytes'] / 2**20:.2f}", f"{own:.1f}", f"{speed['torch'] / own:.2f}"])
    return first, second
