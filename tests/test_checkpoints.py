"""Loading of checkpoints: whatever a file holds, the network it should hold or an error that says what is wrong."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tortoise_rt.errors import CheckpointError  # noqa: E402
from tortoise_rt.export.checkpoints import (  # noqa: E402
    WEIGHT_NORMED,
    WRAPPERS,
    Checkpoints,
    load_network,
    read_weights,
    write_network,
)
from tortoise_rt.spec import CHECKPOINT_FILES, DIM_KEYS  # noqa: E402

Weights = dict[str, Any]


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A folder with the tiny model's config.json and no checkpoints yet."""
    shutil.copy(data / "config.json", tmp_path)
    return tmp_path


def stored(data: Path, network: str) -> Weights:
    """The file's own tensors, weight norm not folded."""
    loaded = torch.load(data / CHECKPOINT_FILES[network], weights_only=True)
    return dict(loaded["model_g"] if network == "vocoder" else loaded)


def save(folder: Path, network: str, content: Any) -> Path:
    path = folder / CHECKPOINT_FILES[network]
    torch.save(content, path)
    return path


def assert_same(folder: Path, data: Path, network: str, **tolerance: float) -> None:
    """The network of both folders is the same, in float32."""
    found, wanted = (load_network(place, network).state_dict() for place in (folder, data))
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key], tensor, **(tolerance or {"rtol": 0, "atol": 0}), msg=key)


# --- what is accepted ---


def test_every_network_loads_and_knows_its_dimensions(data: Path) -> None:
    checkpoints = Checkpoints(data)
    assert set(checkpoints.networks) == set(CHECKPOINT_FILES)
    assert set(checkpoints.dims()) == {key for keys in DIM_KEYS.values() for key in keys}
    assert [part.split("=")[0] for part in checkpoints.fingerprint().split(",")] == [
        "autoregressive",
        "diffusion",
    ]


def test_buffers_that_released_files_carry_are_dropped(data: Path, folder: Path) -> None:
    weights = stored(data, "autoregressive")
    for layer in range(4):
        weights[f"gpt.h.{layer}.attn.bias"] = torch.ones(1, 1, 9, 9, dtype=torch.uint8)
        weights[f"gpt.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save(folder, "autoregressive", weights)
    assert_same(folder, data, "autoregressive")


def test_other_buffers_are_not(data: Path, folder: Path) -> None:
    save(folder, "autoregressive", {**stored(data, "autoregressive"), "gpt.h.0.mlp.bias": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 unexpected: gpt\.h\.0\.mlp\.bias"):
        load_network(folder, "autoregressive")


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("network", ["vocoder", "rlg_auto"])
def test_wrappers_are_opened(data: Path, folder: Path, wrapper: str, network: str) -> None:
    save(folder, network, {wrapper: stored(data, network), "epoch": 3})
    assert_same(folder, data, network)


@pytest.mark.parametrize("network", ["vocoder", "hifigan"])
def test_both_spellings_of_weight_norm_mean_the_same(data: Path, folder: Path, network: str) -> None:
    weights = stored(data, network)
    assert any(key.endswith("weight_g") for key in weights)
    renamed = {}
    for key, tensor in weights.items():
        key = key.replace("weight_g", "parametrizations.weight.original0")
        renamed[key.replace("weight_v", "parametrizations.weight.original1")] = tensor
    path = save(folder, network, renamed)
    assert_same(folder, data, network)
    key = next(key.removesuffix("_v") for key in weights if key.endswith("weight_v"))
    v, g = weights[f"{key}_v"], weights[f"{key}_g"]
    norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))
    torch.testing.assert_close(read_weights(path)[key], g * v / norm)


@pytest.mark.parametrize("network", WEIGHT_NORMED)
@pytest.mark.parametrize("half", [True, False])
def test_weight_norm_of_weights_gives_them_back_bit_for_bit(
    data: Path, folder: Path, network: str, half: bool
) -> None:
    weights = read_weights(data / CHECKPOINT_FILES[network])
    weights = {k: v.half().float() if half else v for k, v in weights.items()}
    path = write_network(folder, network, weights)
    found = read_weights(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in weights.items())
    kept = torch.load(path, weights_only=True)
    assert stored(data, network).keys() == (kept["model_g"] if network == "vocoder" else kept).keys()
    load_network(folder, network)


def test_folded_weights_are_taken_as_they_are(data: Path, folder: Path) -> None:
    save(folder, "hifigan", read_weights(data / CHECKPOINT_FILES["hifigan"]))
    assert_same(folder, data, "hifigan")


@pytest.mark.parametrize("network", ["autoregressive", "vocoder"])
def test_half_precision_is_widened(data: Path, folder: Path, network: str) -> None:
    weights = stored(data, network)
    save(folder, network, {k: v.half() if v.is_floating_point() else v for k, v in weights.items()})
    assert_same(folder, data, network, rtol=4e-3, atol=1e-4)


def test_the_older_file_format_is_read(data: Path, folder: Path) -> None:
    path = folder / CHECKPOINT_FILES["rlg_auto"]
    torch.save(stored(data, "rlg_auto"), path, _use_new_zipfile_serialization=False)
    assert_same(folder, data, "rlg_auto")


# --- what is refused ---


def test_every_kind_of_wrong_key_is_named_at_once(data: Path, folder: Path) -> None:
    weights = stored(data, "clvp")
    del weights["to_text_latent.weight"], weights["text_transformer.transformer.norm.bias"]
    weights["to_text_latent.weight"] = stored(data, "clvp")["to_text_latent.weight"][:, :-1]
    weights["extra.weight"] = torch.ones(2)
    save(folder, "clvp", weights)
    with pytest.raises(CheckpointError) as caught:
        load_network(folder, "clvp")
    message = str(caught.value)
    assert "1 missing: text_transformer.transformer.norm.bias" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 misshapen: to_text_latent.weight (64, 63) instead of (64, 64)" in message


def test_wrong_shapes_are_named_beside_missing_keys(data: Path, folder: Path) -> None:
    weights = stored(data, "autoregressive")
    del weights["mel_embedding.weight"]
    weights |= {"final_norm.weight": torch.ones(7), "zzz": torch.ones(1)}
    save(folder, "autoregressive", weights)
    with pytest.raises(CheckpointError) as caught:
        load_network(folder, "autoregressive")
    message = str(caught.value)
    assert "1 missing: mel_embedding.weight" in message
    assert "1 unexpected: zzz" in message
    assert "1 misshapen: final_norm.weight (7,) instead of (64,)" in message


def test_all_keys_are_named_even_where_dimensions_hang_on_a_missing_one(data: Path, folder: Path) -> None:
    weights = stored(data, "autoregressive")
    gone = [
        k for k in weights if k.startswith(("gpt.h.1.", "mel_pos_embedding", "conditioning_encoder.attn.2"))
    ]
    for key in (*gone, "text_embedding.weight"):
        del weights[key]
    extra = {f"extra.{i}": torch.ones(1) for i in range(20)}
    save(folder, "autoregressive", {**weights, **extra})
    with pytest.raises(CheckpointError) as caught:
        load_network(folder, "autoregressive")
    message = str(caught.value)
    assert f"{len(gone) + 1} missing: " in message
    assert "20 unexpected: " in message
    assert all(key in message for key in (*gone, "text_embedding.weight", *extra))


#: rlg_diffuser looks like rlg_auto, wav2vec2 is a folder
NETWORKS = [network for network in CHECKPOINT_FILES if network not in ("rlg_diffuser", "wav2vec2")]


@pytest.mark.parametrize(("wanted", "held"), list(zip(NETWORKS, NETWORKS[1:] + NETWORKS[:1], strict=True)))
def test_the_wrong_network_is_recognised(data: Path, folder: Path, wanted: str, held: str) -> None:
    shutil.copy(data / CHECKPOINT_FILES[held], folder / CHECKPOINT_FILES[wanted])
    with pytest.raises(
        CheckpointError, match=f"does not hold the {wanted} network.*looks like the {held} network"
    ):
        load_network(folder, wanted)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_called_damaged(data: Path, folder: Path, kept: float) -> None:
    whole = (data / CHECKPOINT_FILES["rlg_auto"]).read_bytes()
    size = kept if isinstance(kept, int) else int(kept * len(whole))
    path = folder / CHECKPOINT_FILES["rlg_auto"]
    path.write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match="rlg_auto.pth is (damaged|refused)"):
        load_network(folder, "rlg_auto")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


def as_archive(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [pickle.dumps, as_archive], ids=["pickle", "archive"])
@pytest.mark.parametrize(
    "place", [lambda bomb: bomb, lambda bomb: {"layers.0.weight": bomb}], ids=["bare", "inside"]
)
def test_a_hostile_file_is_refused_and_not_executed(
    folder: Path, pack: Callable[[Any], bytes], place: Callable[[Bomb], Any]
) -> None:
    trace = folder / "executed"
    content = pack(place(Bomb(trace)))
    if pack is pickle.dumps:
        pickle.loads(content)  # the bomb works
        trace.unlink()
    (folder / CHECKPOINT_FILES["rlg_auto"]).write_bytes(content)
    with pytest.raises(CheckpointError, match="refused.*nothing in it was executed"):
        load_network(folder, "rlg_auto")
    assert not trace.exists()


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 1}, {"a": torch.ones(1), "b": "text"}, torch.ones(3)])
def test_what_is_no_dictionary_of_tensors_is_refused(folder: Path, content: Any) -> None:
    save(folder, "rlg_auto", content)
    with pytest.raises(CheckpointError, match="not a dictionary of names and tensors"):
        load_network(folder, "rlg_auto")


def test_weight_norm_without_its_magnitude_is_refused(data: Path, folder: Path) -> None:
    weights = stored(data, "hifigan")
    key = next(key for key in weights if key.endswith("weight_g"))
    del weights[key]
    save(folder, "hifigan", weights)
    with pytest.raises(CheckpointError, match="1 missing: conv_pre.weight; 1 unexpected: conv_pre.weight_v"):
        load_network(folder, "hifigan")


def test_a_vocoder_that_sees_too_far_is_refused(data: Path, folder: Path) -> None:
    """Pieces of a stream are decoded with a fixed number of frames beside them."""
    save(folder, "hifigan", stored(data, "hifigan"))
    config = json.loads((data / "config.json").read_text())
    config["hifi"]["resblock_dilation_sizes"] = [[1, 3, 9]] * len(config["hifi"]["resblock_dilation_sizes"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="frames to a side"):
        load_network(folder, "hifigan")


def test_missing_files_and_folders_are_named(data: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder .*nowhere"):
        Checkpoints(folder / "nowhere")
    with pytest.raises(CheckpointError, match="none of the checkpoint files autoregressive.pth"):
        Checkpoints(folder)
    shutil.copy(data / CHECKPOINT_FILES["clvp"], folder)
    with pytest.raises(CheckpointError, match="cvvp.pth is missing; it holds the cvvp network"):
        load_network(folder, "cvvp")


@pytest.mark.parametrize("content", ["", "{", "nonsense", "[1, 2]", "3", b"\xff\xfe\x00"])
def test_a_malformed_config_is_refused(data: Path, folder: Path, content: str | bytes) -> None:
    shutil.copy(data / CHECKPOINT_FILES["clvp"], folder)
    (folder / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match="config.json (is not valid JSON|must hold an object)"):
        Checkpoints(folder)


@pytest.mark.parametrize("value", ["four", -4, None, [4], 2.5, True, 3_000_000])
@pytest.mark.parametrize(
    ("network", "key"),
    [("autoregressive", "heads"), ("autoregressive", "stop_mel_token"), ("detector", "num_attn_heads")],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    data: Path, folder: Path, network: str, key: str, value: Any
) -> None:
    shutil.copy(data / CHECKPOINT_FILES[network], folder)
    config = json.loads((data / "config.json").read_text("utf-8"))
    config[{"detector": "classifier"}.get(network, network)][key] = value
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(CheckpointError, match=f"{key}|heads cannot share"):
        Checkpoints(folder).dims()


def test_loading_imports_no_more_than_torch(data: Path) -> None:
    """Not what torch needs to draw random values for a module that has no place for them: that takes seconds."""
    code = (
        "import sys; from tortoise_rt.export.checkpoints import Checkpoints;"
        "module = Checkpoints(sys.argv[1]).load('autoregressive');"
        "print(len(list(module.parameters())) > 20, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(data)], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
