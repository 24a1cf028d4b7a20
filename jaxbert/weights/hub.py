"""A model's name on the Hugging Face hub -> a folder on this machine, through huggingface_hub and its cache."""

import pathlib

from jaxbert.weights.embedder import LENGTH, MODULES, SETTINGS, transformer_folder
from jaxbert.weights.folder import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    FLAX,
    GOOGLE_CONFIG,
    INDEX,
    MERGED_CONFIG,
    PICKLES,
    WEIGHTS,
    pickle_refused,
)
from jaxbert.weights.names import WeightsError, shown
from jaxbert.weights.tokenizer import TOKENIZER_FILES

# The weights of one kind: a repository often holds the same ones several times.
_MODEL = (CONFIG, GOOGLE_CONFIG, WEIGHTS, INDEX, "model-?????-of-?????.safetensors", LENGTH, *TOKENIZER_FILES)
# Those of old sentence-transformers are in a folder of their own.
_ADAPTER = (ADAPTER, ADAPTER_CONFIG, MERGED_CONFIG)
_FIRST = (*_MODEL, *_ADAPTER, MODULES, SETTINGS, f"?_Pooling/{CONFIG}", *(f"0_Transformer/{name}" for name in _MODEL))

_OTHERS = (FLAX, "*.ckpt.index", "*.ckpt.data-*")


def download(name: str) -> pathlib.Path:
    """The folder of a model: its configuration, tokenizer and weights, of which safetensors go before Flax's and Google's.

    Raises WeightsError, in one line, where there is no network and no copy, no such model, or no weights that can be read.
    """
    import huggingface_hub

    pickles: list[str] = []
    try:
        folder = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_FIRST)))
        if not list(folder.rglob("*.safetensors")):
            huggingface_hub.snapshot_download(name, allow_patterns=list(_OTHERS))
            # Nothing of a pickle is fetched: that there is one is told, so that it can be said what to do.
            files = [] if huggingface_hub.constants.HF_HUB_OFFLINE else huggingface_hub.list_repo_files(name)
            pickles = [file for file in files if file in PICKLES]
    # What the hub's client raises depends on how it is built: HTTP errors, OSError, ValueError.
    except Exception as error:
        text = shown((str(error) or type(error).__name__).splitlines()[0], 300)
        raise WeightsError(
            f"{shown(name)}: is no file or folder here, and could not be fetched from the hub ({text}): "
            "name a folder, or try again with a network"
        ) from None
    if pickles and not any(path.name == FLAX or path.suffix == ".index" for path in folder.iterdir()):
        raise WeightsError(pickle_refused(f"{name}/{pickles[0]}"))
    if not any((transformer_folder(folder) / config).is_file() for config in (CONFIG, GOOGLE_CONFIG, ADAPTER_CONFIG)):
        raise WeightsError(f"{name}: has no {CONFIG} on the hub: name a model that jaxbert can load")
    return folder
