"""Official checkpoint files -> torch modules, without ever unpickling code, and with every wrong key named."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tortoise_rt.errors import CheckpointError
from tortoise_rt.spec import CHECKPOINT_FILES

from .models.autoregressive import UnifiedVoice
from .models.diffusion import DiffusionTts
from .models.hifigan import HifiganGenerator
from .models.ranking import CLVP, CVVP
from .models.small import Detector, RandomDiffuserLatentConverter, RandomLatentConverter
from .models.univnet import UnivNetGenerator

MODULES: Mapping[str, Any] = {
    "autoregressive": UnifiedVoice,
    "clvp": CLVP,
    "cvvp": CVVP,
    "diffusion": DiffusionTts,
    "vocoder": UnivNetGenerator,
    "hifigan": HifiganGenerator,
    "rlg_auto": RandomLatentConverter,
    "rlg_diffuser": RandomDiffuserLatentConverter,
    "detector": Detector,
}

#: network -> its section in a config.json beside the checkpoints
CONFIG_SECTIONS: Mapping[str, str] = {"hifigan": "hifi", "detector": "classifier"}

#: network -> numbers that its section may give, and the least that each may be
CONFIG_NUMBERS: Mapping[str, Mapping[str, int]] = {
    "autoregressive": {"heads": 1, "start_mel_token": 0, "stop_mel_token": 0, "start_text_token": 0},
    "detector": {"num_attn_heads": 1, "downsample_factor": 1},
}

#: keys that released files carry and no module needs
IGNORED = re.compile(r"gpt\.h\.\d+\.attn\.(bias|masked_bias)")

#: a key that only this network has, to tell a user what a wrong file holds
SIGNATURES: Mapping[str, str] = {
    "autoregressive": "mel_pos_embedding.emb.weight",
    "clvp": "text_emb.weight",
    "cvvp": "cond_emb.0.weight",
    "diffusion": "inp_block.weight",
    "vocoder": "res_stack.0.convt_pre.1.bias",
    "hifigan": "cond_layer.weight",
    "rlg_auto": "layers.5.weight",
    "detector": "enc.init.0.weight",
}

WRAPPERS = ("model_g", "state_dict", "model")
LISTED = 8  #: keys listed of each kind in an error


class Checkpoints:
    """A folder of checkpoint files in the official layout."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(
                f"no folder {self.folder}: give the folder that holds autoregressive.pth and the others"
            )
        self.networks = tuple(n for n, file in CHECKPOINT_FILES.items() if (self.folder / file).is_file())
        if not self.networks:
            raise CheckpointError(
                f"{self.folder} holds none of the checkpoint files {', '.join(CHECKPOINT_FILES.values())}"
            )
        self.config = self._read_config()

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        if not path.is_file():
            return {}
        try:
            config = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(config, dict):
            raise CheckpointError(f"{path} must hold an object")
        return config

    def path(self, network: str) -> Path:
        """The network's file; raises CheckpointError when there is none."""
        path = self.folder / CHECKPOINT_FILES[network]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; it holds the {network} network")
        return path

    def section(self, network: str) -> dict[str, Any]:
        """What config.json says about the network; empty when nothing. Raises CheckpointError for unusable numbers."""
        section = self.config.get(CONFIG_SECTIONS.get(network, network), {})
        if not isinstance(section, dict):
            return {}
        for key, least in CONFIG_NUMBERS.get(network, {}).items():
            value = section.get(key, least)
            if type(value) is not int or value < least:
                raise CheckpointError(
                    f"{self.folder / 'config.json'} gives {key} of the {network} network as {value!r}; "
                    f"it must be an integer of at least {least}"
                )
        return section

    def load(self, network: str) -> nn.Module:
        """The network in float32, weights memory-mapped where the file allows."""
        path = self.path(network)
        weights = {k: v for k, v in read_weights(path).items() if not IGNORED.fullmatch(k)}
        try:
            with torch.device("meta"):
                module = MODULES[network].from_weights(weights, self.section(network))
        except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not hold the {network} network ({_describe(error)}){_looks_like(weights, network)}"
            ) from None
        _check_keys(path, network, weights, module.state_dict())
        module.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
        return module.eval().requires_grad_(False)

    def dims(self) -> dict[str, int]:
        """Dimensions of all networks present (see ``spec.DIM_KEYS``)."""
        dims: dict[str, int] = {}
        for network in self.networks:
            dims.update(self.load(network).dims(self.section(network)))  # type: ignore[operator]
        return dims

    def fingerprint(self) -> str:
        """Identifies the voice encoder: 16 hex digits; "" without an autoregressive network."""
        if "autoregressive" not in self.networks:
            return ""
        weights = read_weights(self.path("autoregressive"))
        try:
            parts = [weights[k] for k in ("conditioning_encoder.init.weight", "final_norm.weight")]
        except KeyError as error:
            raise CheckpointError(f"{self.path('autoregressive')} lacks {error}") from None
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def load_network(folder: str | Path, network: str) -> nn.Module:
    """One network of a checkpoint folder as an inference module."""
    return Checkpoints(folder).load(network)


def read_weights(path: Path) -> dict[str, Tensor]:
    """State dict of a .pth file: wrapper dictionaries opened, weight norm folded. Never runs code from the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickles that it is about to refuse
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors, or is not a checkpoint at all (nothing in it was executed)"
        ) from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {_describe(error)}. Fetch it again") from None
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path} is not a dictionary of tensors")
    return fold_weight_norm(loaded)


def fold_weight_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces g and v of weight norm by the weight g * v / |v| (norm over all but the first dimension)."""
    folded = {}
    for key, tensor in weights.items():
        if key.endswith(("weight_g", "weight.original0")):
            continue
        if key.endswith("weight_v"):
            key, g = key.removesuffix("_v"), weights.get(key.removesuffix("_v") + "_g")
        elif key.endswith("parametrizations.weight.original1"):
            g = weights.get(key.removesuffix("1") + "0")
            key = key.replace("parametrizations.weight.original1", "weight")
        else:
            folded[key] = tensor
            continue
        if g is None or g.shape[0] != tensor.shape[0]:
            raise CheckpointError(f"weight norm of {key} lacks its magnitude")
        folded[key] = torch._weight_norm(tensor.float(), g.float(), 0)
    return folded


def _check_keys(path: Path, network: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    problems = []
    missing = [k for k in wanted if k not in given]
    unexpected = [k for k in given if k not in wanted]
    misshapen = [
        f"{k} {tuple(given[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in given and given[k].shape != wanted[k].shape
    ]
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if keys:
            more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
            problems.append(f"{len(keys)} {kind}: {', '.join(keys[:LISTED])}{more}")
    if problems:
        raise CheckpointError(
            f"{path} does not hold the {network} network. Keys {'; '.join(problems)}{_looks_like(given, network)}"
        )


def _looks_like(weights: Mapping[str, Tensor], network: str) -> str:
    found = [n for n, key in SIGNATURES.items() if key in weights and n != network]
    return f". It looks like the {found[0]} network" if found else ""


def _describe(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).split("\n")[0]
