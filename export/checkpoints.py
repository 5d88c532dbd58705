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

from . import wav2vec2
from .bare import bare
from .models.aligner import Aligner
from .models.autoregressive import UnifiedVoice
from .models.diffusion import DiffusionTts
from .models.hifigan import HifiganGenerator
from .models.ranking import CLVP, CVVP
from .models.small import Detector, RandomDiffuserLatentConverter, RandomLatentConverter
from .models.univnet import UnivNetGenerator
from .models.wav2vec2 import Wav2Vec2

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
    "aligner": Aligner,
    "wav2vec2": Wav2Vec2,
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
    "aligner": "bands.gain",
    "wav2vec2": "lm_head.weight",
}

#: small tensors that tell one training from another
FINGERPRINT_KEYS: Mapping[str, tuple[str, ...]] = {
    "autoregressive": ("conditioning_encoder.init.weight", "final_norm.weight"),
    "diffusion": ("contextual_embedder.0.weight", "code_norm.weight"),
}

SAFETENSORS = "model.safetensors"  #: as wav2vec2's file may be
WRAPPERS = ("model_g", "state_dict", "model")
#: endings of magnitude and direction in both spellings of weight norm, and of the plain weight
WEIGHT_NORM = (
    ("weight_g", "weight_v", "weight"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1", "weight"),
)
#: networks stored with weight norm -> the keys of convolutions that are stored without
WEIGHT_NORMED: Mapping[str, tuple[str, ...]] = {"vocoder": (), "hifigan": ("cond_layer.weight",)}
#: shapes assumed of a missing tensor, to learn which other keys are wrong
PLACEHOLDERS = ((1 << 14, 64, 64), (1 << 15, 128, 128))


class Checkpoints:
    """A folder of checkpoint files in the official layout."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(
                f"no folder {self.folder}: give the folder that holds autoregressive.pth and the others"
            )
        self.networks = tuple(n for n in CHECKPOINT_FILES if self._file(n).is_file())
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
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(config, dict):
            raise CheckpointError(f"{path} must hold an object")
        return config

    def _file(self, network: str) -> Path:
        """The network's file, where it is or would be."""
        path = self.folder / CHECKPOINT_FILES[network]
        other = path.with_name(SAFETENSORS)
        return other if network == "wav2vec2" and other.is_file() else path

    def path(self, network: str) -> Path:
        """The network's file; raises CheckpointError when there is none."""
        path = self._file(network)
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; it holds the {network} network")
        return path

    def section(self, network: str) -> dict[str, Any]:
        """What config.json says about the network; empty when nothing. Raises CheckpointError for unusable numbers."""
        if network == "wav2vec2":  # it has a config.json of its own
            return wav2vec2.section(self.path(network).parent)
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
        if other := _looks_like(weights, network):
            raise CheckpointError(
                f"{path} does not hold the {network} network. It looks like the {other} network"
            )
        section = self.section(network)
        if network == "wav2vec2":
            weights = wav2vec2.prepared(path.parent, weights, section["pad_token_id"])
        module = _build(path, network, weights, section)
        module.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
        return module.eval().requires_grad_(False)

    def dims(self) -> dict[str, int]:
        """Dimensions of all networks present (see ``spec.DIM_KEYS``)."""
        dims: dict[str, int] = {}
        for network in self.networks:
            dims.update(self.load(network).dims(self.section(network)))  # type: ignore[operator]
        return dims

    def fingerprint(self) -> str:
        """Identifies the voice encoders: network=hex digits, joined by commas; voice latents are tagged with it."""
        parts = []
        for network, keys in FINGERPRINT_KEYS.items():
            if network not in self.networks:
                continue
            weights, digest = read_weights(self.path(network)), hashlib.sha256()
            if missing := [key for key in keys if key not in weights]:
                raise CheckpointError(f"{self.path(network)} lacks {', '.join(missing)}")
            for key in keys:
                digest.update(weights[key].float().contiguous().numpy().tobytes())
            parts.append(f"{network}={digest.hexdigest()[:16]}")
        return ",".join(parts)


def load_network(folder: str | Path, network: str) -> nn.Module:
    """One network of a checkpoint folder as an inference module."""
    return Checkpoints(folder).load(network)


def read_weights(path: Path) -> dict[str, Tensor]:
    """State dict of a .pth or .safetensors file: wrapper dictionaries opened, weight norm folded. Runs no code from it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickles that it is about to refuse
            loaded = _load(path)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors, or is not a checkpoint at all (nothing in it was executed)"
        ) from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # a damaged file can make torch's reader raise nearly anything
        raise CheckpointError(f"{path} is damaged or truncated: {_describe(error)}. Fetch it again") from None
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded or not all(map(_is_weight, loaded.items())):
        raise CheckpointError(f"{path} is not a dictionary of names and tensors of floating-point numbers")
    return fold_weight_norm(loaded)


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # as its only use: the others are read without it

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _is_weight(item: tuple[object, object]) -> bool:
    """Whether a name and its value can be an entry of a state dict (buffers of flags are ignored later)."""
    key, value = item
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and (value.is_floating_point() or IGNORED.fullmatch(key) is not None)
    )


def fold_weight_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces g and v of weight norm by the weight g * v / |v| (norm over all but the first dimension).

    Where g is |v|, to float32's precision, v is the weight and keeps its bits. A g or v that lacks the other stays
    as it is, for the check of keys to name.
    """
    folded = dict(weights)
    for key, v in weights.items():
        for magnitude, direction, plain in WEIGHT_NORM:
            base = key.removesuffix(direction)
            g = weights.get(base + magnitude)
            if base != key and g is not None and v.ndim > 1 and g.shape == (len(v), *[1] * (v.ndim - 1)):
                del folded[key], folded[base + magnitude]
                own = torch.isclose(_norms(v), g.double(), rtol=torch.finfo(torch.float32).eps, atol=0.0)
                folded[base + plain] = torch.where(
                    own, v.float(), torch._weight_norm(v.float(), g.float(), 0)
                )
    return folded


def unfold_weight_norm(weights: Mapping[str, Tensor], keep: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Every convolution's weight but those in ``keep`` as g and v of weight norm; folding gives them back bit for bit."""
    unfolded = {}
    for key, tensor in weights.items():
        if key.endswith(".weight") and tensor.ndim == 3 and key not in keep:
            unfolded[f"{key}_g"] = _norms(tensor).float()
            unfolded[f"{key}_v"] = tensor
        else:
            unfolded[key] = tensor
    return unfolded


def _norms(weight: Tensor) -> Tensor:
    """(out, ...) -> the norm over all but the first dimension, (out, 1, ...) float64."""
    return weight.double().flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))


def write_network(folder: Path, network: str, weights: Mapping[str, Tensor]) -> Path:
    """Save a network's state dict as its official file holds it; -> the file."""
    if network in WEIGHT_NORMED:
        weights = unfold_weight_norm(weights, WEIGHT_NORMED[network])
    path = folder / CHECKPOINT_FILES[network]
    torch.save({"model_g": weights} if network == "vocoder" else dict(weights), path)
    return path


def _build(path: Path, network: str, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """The module that fits ``weights``, without values; raises CheckpointError naming every key that is wrong."""
    module = _assume(path, network, weights, config, PLACEHOLDERS[0])
    wanted = {key: tensor.shape for key, tensor in module.state_dict().items()}
    missing = [key for key in wanted if key not in weights]
    unexpected = [key for key in weights if key not in wanted]
    sure = wanted
    if missing:  # shapes that hang on what was assumed of a missing tensor are not known
        other = _assume(path, network, weights, config, PLACEHOLDERS[1]).state_dict()
        sure = {key: shape for key, shape in wanted.items() if key in other and other[key].shape == shape}
    misshapen = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(shape)}"
        for key, shape in sure.items()
        if key in weights and weights[key].shape != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    if problems := [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in kinds if keys]:
        raise CheckpointError(f"{path} does not hold the {network} network. Keys {'; '.join(problems)}")
    return module


def _assume(
    path: Path,
    network: str,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    shape: tuple[int, ...],
) -> nn.Module:
    """The module of the dimensions that ``weights`` have, those of tensors it lacks taken from ``shape``."""
    assumed: dict[str, Tensor] = {}
    while True:
        try:
            with bare():
                return MODULES[network].from_weights({**weights, **assumed}, config)
        except KeyError as error:
            if error.args[0] in assumed:
                raise
            assumed[error.args[0]] = torch.empty(shape, device="meta")
        except (IndexError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
            lacks = f"; it lacks {', '.join(assumed)}" if assumed else ""
            raise CheckpointError(
                f"{path} does not hold the {network} network ({_describe(error)}{lacks})"
            ) from None


def _looks_like(weights: Mapping[str, Tensor], network: str) -> str:
    """The other network that the weights are, "" when they may be this one."""
    if SIGNATURES.get(network, "layers.0.weight") in weights:
        return ""
    return next((other for other, key in SIGNATURES.items() if key in weights), "")


def _describe(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).split("\n")[0]
