"""What ONNX Runtime may run elsewhere than on the GPU, and where it finds CUDA's libraries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
import onnxruntime
from standard import write_standard

from tortoise_rt.backends.onnx_checks import INTEGER_NODES, PROVIDERS, check_provider
from tortoise_rt.backends.onnx_cuda import load_libraries
from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import BundleMismatch, EngineError
from tortoise_rt.spec import GRAPHS

CPU, CUDA = PROVIDERS["cpu"], PROVIDERS["cuda"]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> EngineInfo:
    return write_standard(tmp_path_factory.mktemp("half"), "fp16")


@pytest.fixture(params=["fp32", "fp16"])
def info(request: pytest.FixtureRequest) -> EngineInfo:
    """All graphs for CUDA in a precision that it has."""
    return request.getfixturevalue("standard_graphs" if request.param == "fp32" else "half")


def placed(model: onnx.ModelProto, *on_the_cpu: onnx.NodeProto, active: str = CUDA) -> Any:
    """A session on CUDA that runs some nodes on the CPU."""

    def part(provider: str, *nodes: onnx.NodeProto) -> Any:
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: list(nodes))

    properties = {prop.key: prop.value for prop in model.metadata_props}
    return SimpleNamespace(
        disable_fallback=lambda: None,
        get_providers=lambda: [active, CPU],
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=properties),
        get_provider_graph_assignment_info=lambda: [part(CUDA, *model.graph.node), part(CPU, *on_the_cpu)],
    )


def value_types(model: onnx.ModelProto) -> dict[str, str]:
    """What each value of a model is, as ONNX Runtime says it; all become outputs."""
    shown = onnx.ModelProto.FromString(model.SerializeToString())
    del shown.graph.output[:]
    names = [name for node in model.graph.node for name in node.output]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=[CPU])
    return {value.name: value.type for value in session.get_outputs()}


@pytest.mark.parametrize("graph", list(GRAPHS))
def test_shapes_and_indices_alone_may_be_elsewhere(info: EngineInfo, graph: str) -> None:
    """Each node of each graph, as the only one that is on the CPU."""
    model = onnx.load(Path(info.source, f"{graph}.onnx"))
    types, allowed = value_types(model), 0
    for node in model.graph.node:
        if {types[name] for name in node.output} <= {"tensor(int64)", "tensor(int32)", "tensor(bool)"}:
            check_provider(graph, CUDA, placed(model, node))
            allowed += 1
        else:
            with pytest.raises(EngineError, match=f'"{graph}" would run on the CPU in part.*{node.name}'):
                check_provider(graph, CUDA, placed(model, node))
    assert allowed < len(model.graph.node) / 3 and bool(allowed) == any(
        node.op_type == "Shape" for node in model.graph.node
    )


@pytest.mark.parametrize("graph", list(GRAPHS))
def test_no_shape_of_what_is_transposed(standard_graphs: EngineInfo, graph: str) -> None:
    """ONNX Runtime would take the shape of what was before, and put an index of its own behind it, on the CPU."""
    nodes = onnx.load(Path(standard_graphs.source, f"{graph}.onnx"), load_external_data=False).graph.node
    turned = {name for node in nodes if node.op_type == "Transpose" for name in node.output}
    assert not [node for node in nodes if node.op_type == "Shape" and node.input[0] in turned]


def test_activations_may_not_be_elsewhere(half: EngineInfo) -> None:
    """Whatever the operator: those that shapes are computed with as well; nor what ONNX Runtime puts in."""
    model = onnx.load(Path(half.source, "ar_step.onnx"), load_external_data=False)
    properties = {prop.key: prop.value for prop in model.metadata_props}
    integers = set(properties[INTEGER_NODES].split())
    arithmetic = {node.op_type for node in model.graph.node if node.name not in integers}
    assert arithmetic >= {"Add", "Cast", "Concat", "Gather", "Identity", "Mul", "Slice", "Where"}
    its_own = onnx.helper.make_node("Gather", ["a", "b"], ["c"], name="Gather")
    with pytest.raises(EngineError, match=r"CUDAExecutionProvider: Gather \(Gather\)\. Use another version"):
        check_provider("ar_step", CUDA, placed(model, its_own))
    with pytest.raises(EngineError, match=r"Add \(Add_\d+\), .*\), \.\.\.\. Use another"):
        check_provider("ar_step", CUDA, placed(model, *model.graph.node))


def test_a_session_elsewhere(half: EngineInfo) -> None:
    model = onnx.load(Path(half.source, "ar_step.onnx"), load_external_data=False)
    with pytest.raises(EngineError, match=f"wants {CUDA}, but ONNX Runtime chose {CPU}"):
        check_provider("ar_step", CUDA, placed(model, active=CPU))


def test_a_model_that_does_not_say(half: EngineInfo) -> None:
    model = onnx.load(Path(half.source, "rlg_auto.onnx"), load_external_data=False)
    check_provider("rlg_auto", CUDA, placed(model))
    (said,) = (prop for prop in model.metadata_props if prop.key == INTEGER_NODES)
    assert said.value == ""
    model.metadata_props.remove(said)
    with pytest.raises(
        BundleMismatch, match=r"exported by an earlier version.*tortoise-rt export --target cuda$"
    ):
        check_provider("rlg_auto", CUDA, placed(model))


# --- libraries ---


def module(preload: Callable[[], None] | None) -> ModuleType:
    """One that says of itself what ONNX Runtime's does, or is too old to."""
    made = ModuleType("onnxruntime")
    if preload:
        made.preload_dlls = preload  # type: ignore[attr-defined]
    return made


def test_libraries_are_loaded_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    def preload() -> None:
        print("Failed to load libcublas.so.13: no such file\nFailed to load libcurand.so.10: no such file")

    assert load_libraries(module(preload)).startswith("Failed to load libcublas.so.13: no")
    assert load_libraries(module(lambda: None)) == ""
    assert load_libraries(module(None)) == ""
    assert capfd.readouterr() == ("", "")


def test_libraries_are_loaded_once() -> None:
    """By whichever engine is opened first: the standard output is all threads', and is turned away meanwhile."""
    loaded: list[int] = []

    def preload() -> None:
        loaded.append(threading.get_ident())
        time.sleep(0.05)
        print("Failed to load libcublas.so.13")

    runtime = module(preload)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load_libraries, [runtime] * 4))
    assert found == ["Failed to load libcublas.so.13"] * 4 and len(loaded) == 1


def test_what_loading_raises_is_told() -> None:
    def preload() -> None:
        raise RuntimeError("The directory does not exist!\nand more")

    assert load_libraries(module(preload)) == "The directory does not exist!"
