"""What a checkpoint is called and where it lies: what can be said without diffusers."""

from pathlib import Path

from shared.config import ModelConfig
from shared.errors import ModelUnavailable

BUNDLED_MODELS = Path(__file__).resolve().parent.parent / "models"


def model_id(config: ModelConfig) -> str:
    """What requests call it: a bundled model's or a hub's name, or the last part of a folder's."""
    is_folder = local_folder(config) is not None or _says_a_folder(config)
    return Path(config.name).expanduser().absolute().name if is_folder else config.name


def absolute(config: ModelConfig) -> ModelConfig:
    """`config` with local files by their absolute paths, for workers that run elsewhere."""
    adapters = {name: file.absolute() for name, file in config.adapters.items()}
    name, folder = config.name, local_folder(config)
    if folder is not None and folder != BUNDLED_MODELS / name:
        name = str(folder.absolute())
    return config.model_copy(update={"name": name, "adapters": adapters})


def local_folder(config: ModelConfig) -> Path | None:
    """The bundled model of that name, or the folder; None where it can only be a hub id."""
    for folder in (BUNDLED_MODELS / config.name, Path(config.name).expanduser()):
        if (folder / "model_index.json").is_file():
            return folder
    return None


def find_folder(config: ModelConfig) -> Path | None:
    """As `local_folder`; raises ModelUnavailable where the name can be no hub id either."""
    folder = local_folder(config)
    if folder is not None:
        return folder
    if Path(config.name).expanduser().exists():
        raise ModelUnavailable(
            f"{config.name} is not a diffusers folder: no model_index.json in it"
        )
    if _says_a_folder(config):
        raise ModelUnavailable(f"there is no folder {config.name}")
    return None


def _says_a_folder(config: ModelConfig) -> bool:
    return config.name.startswith((".", "/", "~"))
