"""From what the user calls a model to a folder on this machine: a path, or a name on the Hugging Face hub.

The hub's own cache is looked at first, so that a model that was fetched once is served without a network.
"""

import re
from pathlib import Path

from engine_core.config.checkpoint import weight_files
from engine_core.config.errors import ConfigError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CONFIG_FILES = ["config.json", "generation_config.json"]
_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


def resolve_model_folder(model: str, with_weights: bool = True) -> Path:
    """The folder of `model`; without weights only its configuration is fetched where the whole model is not here.

    Raises `ConfigError` when it is neither here nor to be had from the hub.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ConfigError(f"The model {model} is a file; a folder with config.json and *.safetensors is needed.")
    # "org/name" is a hub name; anything with more slashes, a leading dot or slash was meant as a path.
    if "/" not in model or not _HUB_NAME.fullmatch(model):
        raise ConfigError(f"There is no model folder {model}.")
    return _from_hub(model, _FILES if with_weights else _CONFIG_FILES)


def has_weights(folder: Path) -> bool:
    """Whether all weight files of a model are in its folder."""
    try:
        weight_files(folder)
    except ConfigError:
        return False
    return True


def _from_hub(model: str, patterns: list[str]) -> Path:
    """Imported here: the hub's client is slow to load and not needed for folders."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        cached = Path(snapshot_download(model, allow_patterns=_FILES, local_files_only=True))
        if has_weights(cached):  # not when only a part was ever fetched
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except GatedRepoError:
        raise ConfigError(
            f"The model {model} is gated on the Hugging Face hub: log in with an account that may."
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(f"There is no folder {model} and no such model on the Hugging Face hub.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise ConfigError(
            f"There is no folder {model}, it is not in the local cache and the Hugging Face hub cannot be reached."
        ) from None
