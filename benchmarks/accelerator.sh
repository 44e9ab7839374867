#!/usr/bin/env bash
# All speed measurements on one accelerator within --minutes (default 8), without a network: writes accelerator.md and
# accelerator.json to $OUT, else to runs/accelerator. Needs torch, torchvision, timm, transformers, lightning, pydantic,
# jaxtyping, safetensors, pyyaml, pillow and numpy; the package itself need not be installed.
#   benchmarks/accelerator.sh            # on a GPU
#   benchmarks/accelerator.sh --tiny     # the same code in a few seconds on a CPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" benchmarks/accelerator.py --out "${OUT:-runs/accelerator}" "$@"
