"""``tortoise-rt bench``: what it measures, and that it refuses what does not compute right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_cli import ok, run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tortoise_rt import bench, bench_graphs, make_settings, open_engine  # noqa: E402
from tortoise_rt.backends.fake import FakeEngine  # noqa: E402
from tortoise_rt.cli.bench import PARTS  # noqa: E402
from tortoise_rt.engine import Array  # noqa: E402
from tortoise_rt.proxy_engine import ProxyEngine  # noqa: E402

SHORT = ("--samples", "2", "--codes", "12", "--clients", "1,2", "--repeats", "1")


def test_everything_is_measured_written_and_drawn(random_bundle: Path, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    result = ok(
        "bench", "--engine", str(random_bundle), "--presets", "turbo,ultra_fast", *SHORT,
        "-o", "rows.jsonl", "--plot", "plot.png",
    )  # fmt: skip
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    assert kinds[:3] == ["environment", "ceilings", "verify"]
    assert set(kinds[3:]) == {"graph", "synthesis", "stream", "texts", "load", "start"}
    graphs = {(row["graph"], row["what"]): row for row in rows if row["kind"] == "graph"}
    assert {("ar_step", "decode, 16 rows"), ("ar_step", "prompt of 64")} <= set(graphs)
    assert {name for name, _ in graphs} >= {"clvp_speech", "diffusion_denoise", "univnet", "hifigan"}
    for row in graphs.values():
        assert 0 < row["ms_least"] <= row["ms"] <= row["ms_most"]
        assert row["gflops"] > 0 and 0 < row["share_of_arithmetic"] < 1.5  # the machine's speed drifts
    spoken = {row["preset"]: row for row in rows if row["kind"] == "synthesis"}
    assert (spoken["turbo"]["steps"], spoken["ultra_fast"]["steps"]) == (10, 30)
    assert all(row["samples"] == 2 and row["peak_rss_mib"] > 20 for row in spoken.values())
    assert [row["clients"] for row in rows if row["kind"] == "load"] == [1, 2]
    (stream,) = [row for row in rows if row["kind"] == "stream"]
    assert 0 < stream["first_s"] <= stream["seconds"] and stream["audio_s"] > 0
    assert [row["tokens"] for row in rows if row["kind"] == "texts"] == [
        20,
        80,
        119,
    ]  # the last as many as the model takes
    assert rows[-1]["open_s"] <= rows[-1]["all_graphs_s"]
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    for word in ("GFLOP/s", "real time factor", "p90", "all graphs", "equal codes"):
        assert word in result.output, word


def test_one_part_alone(random_bundle: Path, folder: Path) -> None:
    result = ok("bench", "--engine", str(random_bundle), "--only", "load", *SHORT)
    assert "audio per second" in result.output and "gflops" not in result.output
    assert PARTS == ("graphs", "presets", "stream", "load", "texts", "start")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--presets", "fats"), "no preset 'fats'"),
        (("--clients", "1,x"), "whole numbers"),
        (("--clients", "0"), "whole numbers from 1"),
        (("--repeats", "0"), "0 is not in the range"),
        (("--samples", "0"), "0 is not in the range"),
        (("--plot", "x.txt"), "its suffix must be one of .png"),
        (("-o", "nowhere/x.jsonl"), "a folder that exists"),
        (("--precision", "int5"), "no precision is called 'int5'"),
        (("--precision", "int8", "--engine", "here"), "--precision is of random weights"),
        (("--engine", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_named(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("bench", *arguments)
    assert result.exit_code == 2 and message in result.output


def test_random_weights_are_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("TORTOISE_RT_CACHE", str(folder / "cache"))
    made = folder / "cache" / "bench" / "random-tiny-fp32"
    written = []
    for part in ("presets", "stream"):
        ok("bench", "--random", "tiny", "--only", part, "--presets", "turbo", *SHORT, "-o", "rows.jsonl")
        assert [path.name for path in made.parent.iterdir()] == [made.name]
        written.append((made / "manifest.json").stat().st_mtime_ns)
    assert written[0] == written[1]
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    (spoken,) = [row["codes"] for row in rows if row["kind"] == "synthesis"]
    assert spoken == 24  # none ends before the limit


class Unsteady(ProxyEngine):
    """Its vocoders give something else each time."""

    def __init__(self) -> None:
        super().__init__(FakeEngine())
        self._calls = 0

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        self._calls += graph in ("univnet", "hifigan")
        outputs = super()._run(graph, inputs)
        return tuple(output + 0.01 * self._calls * (graph in ("univnet", "hifigan")) for output in outputs)


def test_an_engine_that_is_not_steady_is_refused() -> None:
    settings = make_settings(num_autoregressive_samples=1, max_mel_tokens=9, diffusion_iterations=2)
    assert bench.verify(FakeEngine(), settings)["codes"] == "equal"
    with pytest.raises(bench.BenchError, match="sound that differs"):
        bench.verify(Unsteady(), settings)


@pytest.mark.parametrize(
    ("graph", "of_rows"), [("ar_step", ("mel_head",)), ("diffusion_denoise", ("time_embed", "emb_layers"))]
)
def test_the_work_of_a_graph_is_that_of_its_matrices(
    random_bundle: Path, graph: str, of_rows: tuple[str, ...]
) -> None:
    """Multiply-adds of a step, or of a row, are the weights of the matrix products that it passes."""
    model = onnx.load(random_bundle / f"{graph}.onnx")
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    products = [node.input[1] for node in model.graph.node if node.op_type == "MatMul"]
    found = {True: 0, False: 0}
    for name in (casts.get(name, name) for name in products):
        if name in sizes and not name.startswith("mean"):
            found[any(part in name for part in of_rows)] += sizes[name]
    properties, _ = bench_graphs._properties(open_engine(random_bundle), graph)
    assert int(properties["multiply_adds"]) == found[False] > 0
    assert int(properties["multiply_adds_of_rows"]) == found[True] > 0
