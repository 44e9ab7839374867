"""The environment of a measurement: commit, hardware, versions, command."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from segdistill.config import UserError, first_line

PACKAGES = ("torch", "torchvision", "lightning", "timm", "transformers", "numpy")


FULL = (
    "out of memory",
    "not enough memory",
    "allocate memory",
    "multiplication overflow",
    "size calculation overflowed",
)
"""Texts in torch's errors when a tensor does not fit into memory."""


@contextmanager
def within_memory() -> Iterator[None]:
    """Turn a failed allocation of NumPy or torch into a :class:`UserError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in FULL):
            raise
        cause = first_line(error, 300)
        raise UserError(f"not enough memory: {cause}; choose a smaller batch, size, window or network") from None


def describe() -> dict[str, str]:
    """The environment of this process as strings."""
    return {
        "version": metadata.version("segdistill"),
        "commit": commit(),
        "hardware": hardware(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "command": " ".join(["segdistill", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit of the source tree, with ``+`` if files were changed; ``unknown`` outside a repository."""
    folder = Path(__file__).parent
    try:
        name = _git(folder, "rev-parse", "--short=10", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """The processor (or GPU) and the number of cores this process may use."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{_processor()}, {cores()} cores, {torch.get_num_threads()} threads"


def computes_bf16(accelerator: str = "auto") -> bool:
    """Whether this machine computes bf16 at least as fast as fp32: a GPU since Ampere, a CPU with AVX-512, AMX or SVE.

    Other processors emulate it: steps of the demo took 8 to 18 times as long on one with AVX2.
    """
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX", "SVE"))


def forget_peak() -> None:
    """Reset the peak of :func:`peak_memory_mb`; for RAM this works only on Linux, elsewhere the old peak stays."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> int:
    """Peak memory of this process since :func:`forget_peak`, in MiB: GPU memory if torch uses a GPU, else RAM."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() // 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 2**10
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()
