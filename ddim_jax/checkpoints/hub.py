"""Folders of the Hugging Face hub, `hf:org/name`, through huggingface_hub if it is installed.

Fetched are the JSON and text files, and of each folder the weights in safetensors that are read:
full precision, or the half precision variant where that is wanted or alone.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from ddim_jax.checkpoints import tensor_files

PREFIX = "hf:"
STEMS = ("diffusion_pytorch_model", "model")
LEFT_ASIDE = ("safety_checker", "feature_extractor", "image_encoder")


def local(name: str, dtype: str | None = None) -> Path:
    """The path that is named, or as of `folder` where a name of the hub is."""
    return folder(name, dtype) if name.startswith(PREFIX) else Path(name).expanduser()


def folder(name: str, dtype: str | None = None) -> Path:
    """Fetches a repository, or finds it in the hub's cache.

    Where the hub cannot be asked, it is what the cache has of it.

    Args:
        name: "hf:org/name", or "hf:org/name@revision".
        dtype: as of `tensor_files.choose`.

    Returns:
        The folder that holds it on this machine.

    Raises:
        ValueError: another name; huggingface_hub is not installed.
        FileNotFoundError: the hub has no such repository, or cannot be reached and the cache has
            nothing of it.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ValueError(f"a checkpoint of the hub is {PREFIX}ORG/NAME, got {name!r}")
    try:
        import huggingface_hub as hub
    except ImportError:
        raise ValueError(
            f"{name} is fetched by huggingface_hub, which is not installed: pip install "
            "'ddim_jax[hub]', or download the folder and give its path"
        ) from None
    options = {"revision": revision or None}
    paths = None
    try:
        paths = hub.list_repo_files(repository, **options)
        chosen = _chosen(hub, repository, paths, dtype, options)
        return Path(hub.snapshot_download(repository, allow_patterns=chosen, **options))
    except Exception as error:  # its own classes, those of its transport, and no network at all
        if paths is None and (cached := _cached(hub, repository, options)):
            return cached
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{name} could not be fetched ({type(error).__name__}: {reason}); check the name and "
            "the network, log in (hf auth login) where it is gated, or give the path of a folder"
        ) from error


def _cached(hub: Any, repository: str, options: dict[str, Any]) -> Path | None:
    """What the cache has of a repository; None: nothing."""
    try:
        return Path(hub.snapshot_download(repository, local_files_only=True, **options))
    except Exception:  # of the same many kinds
        return None


def _chosen(
    hub: Any, repository: str, paths: list[str], dtype: str | None, options: dict[str, Any]
) -> list[str]:
    """The files of a repository that are read."""
    folders: dict[str, set[str]] = {}
    for path in map(PurePosixPath, paths):
        if len(path.parts) <= 2 and path.parts[0] not in LEFT_ASIDE:
            folders.setdefault(str(path.parent), set()).add(path.name)
    chosen = []
    for place, names in folders.items():
        texts = {name for name in names if name.endswith((".json", ".txt"))}
        wanted = {name for name in texts if ".safetensors.index" not in name}
        for stem in STEMS:
            name = tensor_files.choose(names, stem, dtype)
            wanted |= {name} if name else set()
            if name and name.endswith(".json"):
                index = hub.hf_hub_download(repository, str(PurePosixPath(place, name)), **options)
                wanted |= set(json.loads(Path(index).read_text())["weight_map"].values())
        chosen += [str(PurePosixPath(place, name)) for name in sorted(wanted)]
    return chosen
