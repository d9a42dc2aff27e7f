"""The YAML file of `--config`: the flags' names, with dashes or underscores, as keys."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from engine_core.config.errors import ConfigError
from frontend.cli.flags import ServeArgs

MAX_CONFIG_BYTES = 2**20


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in `path` under their Python names. Raises `ConfigError` for anything else than that."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"--config {path} is larger than {MAX_CONFIG_BYTES} bytes.")
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {path} is not UTF-8 text.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must hold `name: value` lines.")
    for key, count in Counter(_written_keys(text)).items():
        if count > 1:  # of which the content has only the last
            raise ConfigError(f"--config {path} sets {key!r} twice.")
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in ServeArgs.__struct_fields__:
            raise ConfigError(f"--config {path}: there is no setting {str(key)!r}.")
        if name in settings:
            raise ConfigError(f"--config {path} sets {str(key)!r} twice.")
        if value is not None:
            settings[name] = value
    return settings


def _written_keys(text: str) -> list[str]:
    """The keys of the outermost mapping, those included that stand there again."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
