"""``timm:<name>`` and ``hf:<owner>/<name>``: a file of the Hugging Face hub, fetched and cached by its own client."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import timm
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from timm.models import get_pretrained_cfg
from timm.models._hub import download_cached_file

from segdistill.config import UserError, nearest

FILES = ("model.safetensors", "pytorch_model.bin")  # in this order


def hub_file(source: str) -> Path:
    """The local copy of what ``timm:<name>`` or ``hf:<owner>/<name>[@revision]`` means, fetched where it is missing.

    A :class:`UserError` says what is wrong with the name, or, without a network, where to put the file.
    """
    kind, _, name = source.partition(":")
    if kind == "hf":
        repository, _, revision = name.partition("@")
        return _fetch(source, repository, revision or None, FILES)
    config = get_pretrained_cfg(name) if name else None
    if config is None:
        known = timm.list_models(pretrained=True)
        architectures = sorted({model.partition(".")[0] for model in known} | set(known))
        raise UserError(
            f"timm has no weights '{name}': {nearest(name, architectures)}see timm.list_models(pretrained=True)"
        )
    if config.hf_hub_id:
        files = (config.hf_hub_filename,) if config.hf_hub_filename else FILES
        repository, _, revision = config.hf_hub_id.partition("@")
        return _fetch(source, repository, revision or None, files)
    if not config.url:
        raise UserError(f"timm knows the architecture '{name}' but no weights of it: give a path, or weights: random")
    try:
        return Path(download_cached_file(config.url))
    except (URLError, OSError) as error:
        raise UserError(
            f"{source}: {config.url} cannot be fetched ({error}): fetch it elsewhere and give its path as weights"
        ) from None


def _fetch(source: str, repository: str, revision: str | None, files: tuple[str, ...]) -> Path:
    page = f"https://huggingface.co/{repository}"
    for file in files:
        try:
            return Path(hf_hub_download(repository, file, revision=revision))
        except HFValidationError:
            raise UserError(f"'{source}' is no name of a hub repository: give hf:<owner>/<name>") from None
        except GatedRepoError:
            raise UserError(f"{source} is gated: accept its licence at {page}, then run 'hf auth login'") from None
        except RepositoryNotFoundError:
            raise UserError(f"{source}: the hub has no such repository, or it is private: see {page}") from None
        except LocalEntryNotFoundError:
            continue  # no network; another of the files may be in the cache
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            line = str(error).strip().splitlines()[0]
            raise UserError(f"{source} cannot be fetched ({line}): fetch it from {page} and give its path") from None
    raise UserError(
        f"{source}: neither {' nor '.join(files)} can be had (no network, or the repository has other files): fetch "
        f"one from {page} and give its path as weights, or copy the hub's cache of a machine that has it to "
        f"{constants.HF_HUB_CACHE}"
    )
