"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from capi import EXAMPLES, Library, built, compiled
from hub import Server, serving

from tortoise_rt import fetch
from tortoise_rt.backends import open_engine
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.engine import Engine, EngineInfo

if TYPE_CHECKING:
    from serving import Running

ROOT = Path(__file__).resolve().parent.parent

# The models here are so small that threads only wait for each other, the more so under pytest-xdist. That more of them
# compute the same is a test's own matter (test_onnx_threads.py).
for variable in ("OMP_NUM_THREADS", "TORTOISE_RT_THREADS"):
    os.environ.setdefault(variable, "1")

# A shell has its background jobs ignore Ctrl-C, which programs that tests start and interrupt would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers take the tests in long runs, and then from each other, so that a module's fixtures are made once."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish() -> None:
    """What is imported by now stays: garbage need not be looked for in it, as each export does a dozen times."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own: latents that are kept for the user are of other code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORTOISE_RT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def heard_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged reaches caplog, whatever a command or a server in this process did to it before."""
    log = logging.getLogger("tortoise_rt")
    log.setLevel(logging.NOTSET)
    monkeypatch.setattr(log, "propagate", True)


@pytest.fixture(scope="session")
def data() -> Path:
    """Recordings of the reference implementation on a tiny random model."""
    return ROOT / "tests" / "data" / "tiny-a"


@pytest.fixture(scope="session")
def tokenizer_path() -> Path:
    """The official tokenizer.json, which is not part of this repository."""
    chosen = os.environ.get("TORTOISE_RT_TOKENIZER")
    path = Path(chosen) if chosen else ROOT.parent / "shared" / "reference" / "tokenizer.json"
    if not path.is_file():
        pytest.skip(
            f"no tokenizer at {path}: set TORTOISE_RT_TOKENIZER to the tokenizer.json of tortoise-tts"
        )
    return path


def export(checkpoints: Path, output: Path, *networks: str) -> Path:
    """A bundle of some networks of a checkpoint folder (all when none are named), with the tests' tokenizer."""
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    from tortoise_rt.export.bundle import export_bundle
    from tortoise_rt.spec import CHECKPOINT_FILES

    with tempfile.TemporaryDirectory() as chosen, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORTOISE_RT_CACHE", str(Path(chosen) / "cache"))
        files = [Path(CHECKPOINT_FILES[n]) for n in networks or CHECKPOINT_FILES]
        for name in {"config.json", *(file.parts[0] for file in files)}:  # wav2vec2 is a folder
            copy = shutil.copytree if (checkpoints / name).is_dir() else shutil.copy
            copy(checkpoints / name, Path(chosen) / name)
        tokenizer = ROOT / "tests" / "data" / "tokenizer.json"
        export_bundle(chosen, output, check=False, tokenizer=tokenizer, record_source=False)
    return output


@pytest.fixture(scope="session")
def random_bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of all networks, tiny and with random weights. To be copied, not changed."""
    return export(data, tmp_path_factory.mktemp("bundles") / "random")


@pytest.fixture(scope="session")
def fast_bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As random_bundle, with nothing but what the fast decoder needs."""
    return export(data, tmp_path_factory.mktemp("bundles") / "fast", "autoregressive", "hifigan")


@pytest.fixture(scope="session")
def standard_graphs(tmp_path_factory: pytest.TempPathFactory) -> EngineInfo:
    """All networks, tiny and with random weights, as graphs of standard operators. To be read, not changed."""
    from standard import write_standard

    return write_standard(tmp_path_factory.mktemp("standard"))


@pytest.fixture(scope="module")
def plain(standard_graphs: EngineInfo) -> Engine:
    """What runs them on ONNX Runtime."""
    from standard import standard_engine

    return standard_engine(standard_graphs)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with caches and voices of its own."""
    monkeypatch.setenv("TORTOISE_RT_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setenv("TORTOISE_RT_VOICES", str(tmp_path / ".voices"))
    monkeypatch.delenv("TORTOISE_RT_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", params=["fake", "onnx", "torch"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine of each backend, tiny and with random weights."""
    if request.param == "fake":
        return FakeEngine()
    if request.param == "torch":
        pytest.importorskip("torch")
        return open_engine(request.getfixturevalue("data"), "torch", "cpu")
    return open_engine(request.getfixturevalue("random_bundle"), "onnx", "cpu")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of files on this machine, and a cache of the test's own."""
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setenv("TORTOISE_RT_CACHE", str(tmp_path_factory.mktemp("cache")))
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def own_voices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder of voices: nobody's own are seen."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("voices")
        patch.setenv("TORTOISE_RT_VOICES", str(folder))
        yield folder


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server of speech on this machine."""
    from serving import serving as speaking

    with speaking() as running:
        yield running


@pytest.fixture(scope="session")
def capi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C library of this environment: a folder with include and lib."""
    return built(tmp_path_factory.mktemp("capi") / "prefix")


@pytest.fixture(scope="session")
def programs(capi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of compiled programs with the C library: hello, server and capi_load."""
    folder = tmp_path_factory.mktemp("programs")
    for source in (EXAMPLES / "hello.c", EXAMPLES / "server.c", ROOT / "benchmarks" / "capi_load.c"):
        compiled(capi, source, folder / source.stem)
    return folder


@pytest.fixture(scope="session")
def lib(capi: Path) -> Library:
    """The C library in this process."""
    made = Library(capi / "lib" / "libtortoise_rt.so")
    made.ok("start", None)
    return made
