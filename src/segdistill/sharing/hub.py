"""Uploads a packed model to the Hugging Face hub, through the hub's own client."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError

from segdistill.config import UserError, first_line
from segdistill.files import sha256
from segdistill.sharing.pack import card_path, packed_path, read_packed


def push(file: Path, name: str, *, private: bool = True, revision: str | None = None, api: HfApi | None = None) -> str:
    """Upload ``file`` as ``model.safetensors`` and its card as ``README.md`` in one commit; returns its address.

    The repository ``name`` (``<owner>/<name>``) is made where there is none. The card must be there and be this file's.
    """
    path = packed_path(file)
    header, card = read_packed(path)[1], card_path(path)
    if not card.is_file():
        raise UserError(f"{path} has no model card {card.name}; pack the run again")
    if sha256(path).encode() not in card.read_bytes():
        raise UserError(f"{card} is the model card of another file than {path.name}; pack the run again")
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"'{name}' is no name of a hub repository: give <owner>/<name>")
    api = api or HfApi()
    additions = [CommitOperationAdd("model.safetensors", str(path)), CommitOperationAdd("README.md", str(card))]
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.create_commit(name, additions, commit_message=f"segdistill: {header['title']}", revision=revision)
    except HFValidationError:
        raise UserError(f"'{name}' is no name of a hub repository: give <owner>/<name>") from None
    except Exception as error:  # noqa: BLE001  no network, a proxy's page, a refusal: each client and version has its own
        line = f"cannot upload to {name} ({first_line(error)}): run 'hf auth login' with a token that may write"
        raise UserError(line) from None
    return str(commit.commit_url)
