"""A model repository for Triton: its config as Triton's own definition reads it, its model by a stand-in for the backend's module."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tortoise_rt.bundle import demo_folder
from tortoise_rt.cli import main
from tortoise_rt.serving import triton
from tortoise_rt.tts import TextToSpeech
from tortoise_rt.voice import load_voice

TEXT = "Hello there. A boat."
WAIT = 120.0


def write(*arguments: str) -> Path:
    done = CliRunner().invoke(main, ["triton", "-o", "models", *arguments])
    assert done.exit_code == 0, done.output
    return Path(done.output.splitlines()[0])


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["triton", *arguments])
    assert done.exit_code == 2 and "Traceback" not in done.output
    return done.output


def test_the_config_is_what_triton_reads(folder: Path) -> None:
    model_config = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="needs pip install 'tritonclient[grpc]'"
    )
    from google.protobuf import text_format

    write("--gpu", "--rows", "8", "--strict")
    config = text_format.Parse(Path("models/tortoise/config.pbtxt").read_text(), model_config.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("tortoise", "python", 0)
    assert config.model_transaction_policy.decoupled
    inputs = {i.name: (model_config.DataType.Name(i.data_type), [*i.dims], i.optional) for i in config.input}
    assert inputs == {
        "text": ("TYPE_STRING", [1], False),
        "voice": ("TYPE_STRING", [1], True),
        "seed": ("TYPE_INT64", [1], True),
        "settings": ("TYPE_STRING", [1], True),
    }
    outputs = {o.name: (model_config.DataType.Name(o.data_type), [*o.dims]) for o in config.output}
    assert outputs == {"audio": ("TYPE_FP32", [-1]), "seed_used": ("TYPE_INT64", [1])}
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config.ModelInstanceGroup.KIND_GPU, 1)
    told = {name: value.string_value for name, value in config.parameters.items()}
    assert told == {"rows": "8", "strict": "true"}


def test_what_cannot_be_written_is_said(folder: Path) -> None:
    write("--name", "a.b")
    assert "there is a models/a.b already" in refused("-o", "models", "--name", "a.b")
    assert "the model's name is '../a'" in refused("-o", "models", "--name", "../a")
    assert "rows is 0" in refused("-o", "models", "--rows", "0")
    assert "is not an engine bundle" in refused("-o", "models", "--engine", ".")
    assert "cannot write nowhere/models/tortoise" in refused("-o", "nowhere/models")
    assert {path.name for path in folder.iterdir()} - {".cache"} == {"models"}
    assert [path.name for path in Path("models").iterdir()] == ["a.b"]


# --- the model, by a stand-in ---


class Sender:
    """A response sender: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.ended = threading.Event()
        self.first = threading.Event()
        self.cancelled = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.ended.is_set()
        if response is not None:
            self.sent.append(response)
            self.first.set()
        if flags:
            self.ended.set()

    def is_cancelled(self) -> bool:
        return self.cancelled


class Request:
    def __init__(self, **inputs: Any) -> None:
        self.sender = Sender()
        kinds = {"seed": np.int64}
        self.inputs = {
            name: types.SimpleNamespace(
                as_numpy=lambda value=value, name=name: np.array([value], kinds.get(name, np.object_))
            )
            for name, value in inputs.items()
        }

    def get_response_sender(self) -> Sender:
        return self.sender

    def sound(self) -> np.ndarray:
        assert self.sender.ended.wait(WAIT)
        assert [r.error for r in self.sender.sent if r.error] == []
        return np.concatenate([response.tensors["audio"] for response in self.sender.sent])

    def error(self) -> tuple[str, str]:
        assert self.sender.ended.wait(WAIT)
        return self.sender.sent[-1].error


class Response:
    def __init__(self, output_tensors: list[tuple[str, np.ndarray]], error: Any = None) -> None:
        self.tensors, self.error = dict(output_tensors), error


def stand_in() -> types.ModuleType:
    """As much of triton_python_backend_utils as the model uses, with its names."""

    class TritonError(tuple):  # type: ignore[type-arg]
        INVALID_ARG, UNAVAILABLE, INTERNAL, CANCELLED = "invalid", "unavailable", "internal", "cancelled"

        def __new__(cls, message: str, code: str) -> TritonError:
            return tuple.__new__(cls, (message, code))

    module: Any = types.ModuleType("triton_python_backend_utils")
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    module.InferenceResponse = Response
    module.Tensor = lambda name, array: (name, array)
    module.TritonError = TritonError
    module.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The model of a repository with the demo engine in it, as the Python backend starts it."""
    pytest.importorskip("onnxruntime")
    repository = tmp_path_factory.mktemp("triton") / "models"
    target = triton.write_repository(repository, "tortoise", demo_folder(), gpu=False, rows=16, strict=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", stand_in())
        patch.setenv("TORTOISE_RT_VOICES", str(repository / "voices"))
        found = importlib.util.spec_from_file_location("model", target / "1" / "model.py")
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        made = module.TritonPythonModel()
        parameters = {"rows": {"string_value": "16"}, "strict": {"string_value": "false"}}
        made.initialize(
            {
                "model_config": json.dumps({"parameters": parameters}),
                "model_instance_kind": "KIND_CPU",
                "model_instance_device_id": "0",
            }
        )
        yield made
        made.finalize()
        sys.modules.pop("tortoise_rt.serving.triton_model")


def test_sound_is_that_of_python(model: Any) -> None:
    tts = TextToSpeech()
    for name in ("alto", "tenor"):
        request = Request(text=TEXT.encode(), voice=name.encode(), seed=7)
        model.execute([request])
        voice = load_voice(name, paths=False)
        assert voice is not None
        wanted = [*tts.tts_stream(TEXT, list(voice.clips), use_deterministic_seed=7, verbose=False)]
        np.testing.assert_allclose(request.sound(), np.concatenate(wanted), atol=1e-4)
        assert len(request.sender.sent) > 1  # it came in pieces
        assert {int(r.tensors["seed_used"][0]) for r in request.sender.sent} == {7}
        assert all(r.tensors["audio"].dtype == np.float32 for r in request.sender.sent)


def test_requests_run_side_by_side_and_a_seed_brings_a_sound_back(model: Any) -> None:
    first, other = Request(text=b"Good morning."), Request(text=b"Good evening.", settings=b'{"pause": 1}')
    model.execute([first, other])
    assert len(first.sound()) > 0 and len(other.sound()) > 0
    again = Request(text=b"Good morning.", seed=int(first.sender.sent[0].tensors["seed_used"][0]))
    model.execute([again])
    np.testing.assert_allclose(again.sound(), first.sound(), atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "message", "code"),
    [
        ({"text": b" "}, "input is empty", "invalid"),
        ({"text": b"\xff"}, "must be UTF-8", "invalid"),
        ({"text": b"Hi.", "voice": b"emma"}, "emma", "invalid"),
        ({"text": b"Hi.", "voice": b"../alto"}, "alto", "invalid"),
        ({"text": b"Hi.", "seed": -1}, "seed is -1", "invalid"),
        ({"text": b"Hi.", "settings": b"{"}, "settings is no JSON", "invalid"),
        ({"text": b"Hi.", "settings": b'{"temprature": 1}'}, "Did you mean", "invalid"),
        ({"text": b"Hi.", "settings": b'{"seed": 1}'}, "must not have seed", "invalid"),
    ],
)
def test_errors_say_what_is_wrong(model: Any, inputs: dict[str, Any], message: str, code: str) -> None:
    request = Request(**inputs)
    model.execute([request])
    told = request.error()
    assert message in told[0] and told[1] == code


def test_who_leaves_is_not_said_to_the_end(model: Any) -> None:
    request = Request(text=("The boat came in and went out again. " * 40).encode(), seed=1)
    model.execute([request])
    assert request.sender.first.wait(WAIT)
    request.sender.cancelled = True
    assert request.error()[1] == "cancelled"
    sound = sum(len(response.tensors["audio"]) for response in request.sender.sent if not response.error)
    assert sound < 24000 * 60


def test_the_end_waits_for_none_that_speaks(model: Any) -> None:
    request = Request(text=("The boat came in and went out again. " * 40).encode(), seed=1)
    model.execute([request])
    assert request.sender.first.wait(WAIT)
    model.finalize()
    assert request.error() == ("the server was stopped", "unavailable")
