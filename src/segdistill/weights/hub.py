"""``timm:<name>`` and ``hf:<owner>/<name>``: files of the Hugging Face hub, downloaded and cached by its client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import timm
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
)
from timm.models import get_pretrained_cfg

from segdistill.config import UserError, first_line, nearest

FILES = ("model.safetensors", "pytorch_model.bin")  # in this order


def hub_file(source: str, *, local: bool = False) -> Path:
    """The local copy of ``timm:<name>`` or ``hf:<owner>/<name>[@revision]``, downloaded if it is missing.

    With ``local`` nothing is downloaded. A :class:`UserError` says what is wrong with the name or, without a network
    connection, where to put the file.
    """
    kind, _, name = source.partition(":")
    if kind == "hf":
        repository, _, revision = name.partition("@")
        return _fetch(source, repository, revision or None, local)
    architecture, _, tag = name.partition(".")
    config = get_pretrained_cfg(name) if timm.is_model_pretrained(architecture) and _is_tag(architecture, tag) else None
    if config is None:
        known = timm.list_models(pretrained=True)
        raise UserError(f"timm has no weights '{name}': {nearest(name, known)}see timm.list_models(pretrained=True)")
    if not config.hf_hub_id:
        raise UserError(
            f"timm's '{name}' is not on the Hugging Face hub: download {config.url} and give its path as weights"
        )
    repository, _, revision = config.hf_hub_id.partition("@")
    return _fetch(source, repository, revision or None, local)


def _is_tag(architecture: str, tag: str) -> bool:
    return not tag or f"{architecture}.{tag}" in timm.list_models(f"{architecture}.*", pretrained=True)


def _fetch(source: str, repository: str, revision: str | None, local: bool) -> Path:
    page = f"https://huggingface.co/{repository}"
    for file in FILES:
        with suppress(EntryNotFoundError), _explained(source, page, "path"):  # or no network: the other may be cached
            return Path(hf_hub_download(repository, file, revision=revision, local_files_only=local))
    raise UserError(
        f"{source}: neither {' nor '.join(FILES)} could be downloaded or found in the cache (no network, or the "
        f"repository has other files): fetch one from {page} and give its path as weights, or copy the hub's cache of "
        f"a machine that has it to {constants.HF_HUB_CACHE}"
    )


def hub_folder(source: str, patterns: Sequence[str]) -> Path:
    """The local copy of the files of ``hf:<owner>/<name>[@revision]`` that match ``patterns``.

    They are downloaded if they are missing.
    """
    repository, _, revision = source.removeprefix("hf:").partition("@")
    page = f"https://huggingface.co/{repository}"
    with suppress(EntryNotFoundError), _explained(source, page, "folder"):
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    raise UserError(
        f"{source} is not on this machine and cannot be fetched (no network): fetch it from {page} and give its "
        f"folder, or copy the hub's cache of a machine that has it to {constants.HF_HUB_CACHE}"
    )


@contextmanager
def _explained(source: str, page: str, kind: str) -> Iterator[None]:
    """Turns the hub's errors into one line, except those about missing files. ``kind``: what to give instead."""
    try:
        yield
    except EntryNotFoundError:
        raise
    except HFValidationError:
        raise UserError(f"'{source}' is not a valid hub repository name: give hf:<owner>/<name>") from None
    except GatedRepoError:
        raise UserError(f"{source} is gated: accept its licence at {page}, then run 'hf auth login'") from None
    except RepositoryNotFoundError:
        raise UserError(f"{source}: the hub has no such repository, or it is private: see {page}") from None
    except Exception as error:  # noqa: BLE001  no network, a proxy's page: each client and version has its own
        line = f"{source} cannot be fetched ({first_line(error)}): fetch it from {page} and give its {kind}"
        raise UserError(line) from None
