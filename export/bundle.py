"""Checkpoints -> an engine bundle, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt._version import __version__
from tortoise_rt.backends.onnx import OnnxEngine, open_bundle
from tortoise_rt.bundle import (
    FORMAT,
    MANIFEST,
    Bundle,
    Identity,
    cache_folder,
    file_sha256,
    identity,
    load_manifest,
    manifest_sha256,
    read_bundle,
    remember_verified,
    unlisted,
)
from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import BundleError, EngineError, OutputError, suggest
from tortoise_rt.spec import CHECKPOINT_FILES, GRAPHS, Dims
from tortoise_rt.text import Tokenizer

from .checkpoints import Checkpoints
from .onnx import write_graph
from .parity import GraphParity, check_graphs, require_parity
from .publish import bundle_files, locked, publish, restore
from .quantize import PRECISIONS, QUANTIZED, graph_precision
from .tune import TEXT_IDS, TEXTS, as_rows, choose_precisions

#: called with (what is being done, done, total)
Progress = Callable[[str, int, int], None]

#: precision of a graph -> the first ONNX Runtime that runs it; two digits each, so that they order as text.
#: 1.22 is the first whose MatMulNBits on the CPU takes eight bits: 1.21.1 says "Only 4b quantization is supported".
MIN_ONNXRUNTIME: Mapping[str, str] = {"fp32": "1.20", "int8": "1.22", "int4": "1.22", "int8row": "1.20"}
AUTO = "auto"  #: the precision that is chosen by measurement
AUTO_BYTES = 1.7  #: of every form of the graphs, for each byte of weights
SPACE_MARGIN = 64 << 20  #: bytes wanted free beyond the weights themselves


def default_output(checkpoints: Path, target: str, precision: str = "fp32") -> Path:
    """Where a bundle goes when nothing is said: the cache, named after the checkpoint folder, target and precision."""
    kind = target if precision == "fp32" else f"{target}-{precision}"
    return cache_folder() / "engines" / f"{checkpoints.resolve().name}-{kind}"


def export_bundle(
    checkpoints: str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    force: bool = False,
    check: bool = True,
    record_source: bool = True,
    tokenizer: str | Path | None = None,
    precision: str = "fp32",
    progress: Progress = lambda what, done, total: None,
) -> tuple[Bundle, list[GraphParity]]:
    """Export every network of a checkpoint folder for ONNX Runtime on CPU; -> the bundle and its parity report.

    ``record_source`` keeps the checkpoint folder's path in the manifest, for verify and the torch backend.
    ``precision`` is one of ``export.quantize.PRECISIONS``, or AUTO: what is fastest here and near enough to fp32, graph
    by graph (see ``export.tune``; the manifest's "tuning" has what was measured).
    ``tokenizer`` is the tokenizer.json to take along; by default the one beside the checkpoints, if any.
    Written under a temporary name beside ``output`` and renamed when complete, under a lock. Raises
    OutputError when that cannot be done, CheckpointError for unusable checkpoints, ExportError when a graph
    does not agree with its module.
    """
    if precision not in (*PRECISIONS, AUTO):
        raise EngineError(f'no precision is called "{precision}". {suggest(precision, (*PRECISIONS, AUTO))}')
    source = Checkpoints(checkpoints)
    output = Path(output).resolve()
    chosen = _check_tokenizer(tokenizer, source.folder / "tokenizer.json")
    if not output.parent.is_dir():
        raise OutputError(f"no folder {output.parent} to write {output.name} into: create it first")
    with locked(output):
        temporary = output.parent / f".{output.name}.partial"
        shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
        try:
            restore(output)
            _check_output(output, source, force, AUTO_BYTES if precision == AUTO else 1.0)
            temporary.mkdir()
            folder = source.folder.resolve()
            model = {"name": name or folder.name, "folder": str(folder) if record_source else ""}
            if chosen is not None:
                shutil.copyfile(chosen, temporary / "tokenizer.json")
            report, verified = _write(source, temporary, model, check, precision, progress)
            publish(temporary, output)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OutputError(
                    f"{output.parent} ran out of space while exporting; nothing was left behind. "
                    f"The bundle needs about {_weight_bytes(source) >> 20} MiB"
                ) from None
            raise OutputError(f"cannot write the bundle {output}: {error}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        bundle = replace(read_bundle(output, verify=False), verified=verified)
        remember_verified(bundle, verified)
    return bundle, report


def _check_output(output: Path, source: Checkpoints, force: bool, times: float) -> None:
    """Raise OutputError where no bundle can be written: ``times`` the weights' bytes must be free."""
    if output.exists():
        if not force:
            raise OutputError(f"{output} exists: choose another name or replace it with --force")
        _check_replaceable(output)
    free, needed = shutil.disk_usage(output.parent).free, int(times * _weight_bytes(source)) + SPACE_MARGIN
    if free < needed:
        raise OutputError(
            f"{output.parent} has {free >> 20} MiB free; the bundle needs about {needed >> 20} MiB"
        )


def _check_replaceable(output: Path) -> None:
    """Raise OutputError unless the folder's files are a bundle, of whatever format or health, and nothing else."""
    if output.is_dir() and not bundle_files(output):
        return
    try:
        strangers = unlisted(output, load_manifest(output))
    except (BundleError, OSError) as error:
        raise OutputError(
            f"{output} exists and is not an engine bundle: it will not be replaced ({error})"
        ) from None
    if strangers:
        raise OutputError(
            f"{output} also holds {', '.join(strangers[:5])}, which is no part of the bundle: "
            "it will not be replaced. Move that elsewhere, or choose another name"
        )


def _weight_bytes(source: Checkpoints) -> int:
    return sum(source.path(network).stat().st_size for network in source.networks)


def _check_tokenizer(named: str | Path | None, beside: Path) -> Path | None:
    """The tokenizer to take along, None when none is named and none lies beside; raises TextError for a bad one."""
    if named is None and not beside.is_file():
        return None
    chosen = beside if named is None else Path(named)
    Tokenizer(chosen)
    return chosen


def _write(
    source: Checkpoints, folder: Path, model: dict[str, Any], check: bool, precision: str, progress: Progress
) -> tuple[list[GraphParity], dict[str, Identity]]:
    """Write all graphs and the manifest into ``folder``; -> parity, and the files as hashed."""
    graphs = {g: spec for g, spec in GRAPHS.items() if spec.network in source.networks}
    forms = {graph: _forms(graph, precision) for graph in graphs}
    written = sum(map(len, forms.values()))
    steps, done = len(source.networks) * 2 + written + len(graphs) * check, 0
    dims: dict[str, int] = {}
    for network in source.networks:
        progress(f"reading {CHECKPOINT_FILES[network]}", done, steps)
        module = source.load(network)
        config = source.section(network)
        dims.update(module.dims(config))  # type: ignore[operator]
        weights = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
        done += 1
        for graph in (g for g, spec in graphs.items() if spec.network == network):
            for form in forms[graph]:
                place = folder if form == forms[graph][0] else folder / form
                place.mkdir(exist_ok=True)
                progress(f"writing {graph} in {form}", done, steps)
                write_graph(graph, weights, dims, config, place, form)
                done += 1
        del module, weights
        gc.collect()
    precisions = {graph: forms[graph][0] for graph in graphs}
    tuning: list[dict[str, Any]] = []
    if precision == AUTO:
        precisions, tuning = _tune(folder, dims, frozenset(graphs), progress)

    sources = {}
    for network in source.networks:
        path = source.path(network)
        progress(f"hashing {path.name}", done, steps)
        sources[path.name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        done += 1
    files = sorted(folder.iterdir())
    verified = {path.name: identity(path.stat()) for path in files}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "tortoise_rt": __version__,
        "model": {
            **model,
            "sources": sources,
            "fingerprint": source.fingerprint(),
            "notice": source.config.get("notice", ""),
        },
        "target": _target(precisions.values()),
        "precision": precisions,
        "graphs": {graph: f"{graph}.onnx" for graph in graphs},
        "files": {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in files},
        "dims": dims,
        "defaults": source.config.get("defaults") or _defaults(source),
    }
    if tuning:
        manifest["tuning"] = tuning
    report: list[GraphParity] = []
    if check:
        engine = open_bundle(Bundle(folder, manifest), "cpu")
        for parity in check_graphs(engine, source):
            report.append(parity)
            progress(f"checked {parity.graph}", done, steps)
            done += 1
        require_parity(report)
        manifest["parity"] = {p.graph: {"error": p.error, "bound": p.bound, "judge": p.judge} for p in report}
    manifest["sha256"] = manifest_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    progress("done", steps, steps)
    return report, verified


def _forms(graph: str, precision: str) -> tuple[str, ...]:
    """The precisions a graph is written in, fp32 first where there are several to choose from."""
    if precision == AUTO:
        return PRECISIONS if graph in QUANTIZED else ("fp32",)
    return (graph_precision(graph, precision),)


def _tune(
    folder: Path, dims: Dims, graphs: frozenset[str], progress: Progress
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Leave the best form of each graph in ``folder``, of those there (fp32) and in its sub-folders.

    -> precision of each graph, and what was measured.
    """
    if "ar_step" not in graphs:
        raise EngineError("precision auto needs autoregressive.pth, whose speech it listens to")
    path = folder / "tokenizer.json"
    info = EngineInfo("onnx", "cpu", str(folder), dims, graphs, path if path.exists() else None)
    folders = {form: folder if form == "fp32" else folder / form for form in PRECISIONS}
    names = {graph: f"{graph}.onnx" for graph in graphs}
    engines = {form: OnnxEngine(place, info, names) for form, place in folders.items()}
    rng = np.random.default_rng(0)
    if path.exists():
        tokenizer = Tokenizer(path)
        texts = [tokenizer.encode(text) for text in TEXTS]
    else:
        texts = [rng.integers(3, dims["ar.start_text"], TEXT_IDS).tolist() for _ in TEXTS]
    texts = [ids[: dims["ar.text_positions"] - 3] for ids in texts]
    precisions, trials = choose_precisions(engines, texts, progress)
    del engines
    gc.collect()
    for graph, form in precisions.items():
        if form != "fp32":
            for path in (folder / f"{graph}.onnx", folder / f"{graph}.data"):
                path.unlink(missing_ok=True)
                if (better := folders[form] / path.name).exists():
                    better.rename(path)
    for form in PRECISIONS[1:]:
        shutil.rmtree(folders[form], ignore_errors=True)
    return precisions, as_rows(trials)


def _defaults(source: Checkpoints) -> dict[str, Any]:
    """The decoder these checkpoints can run: diffusion when they have it."""
    complete = {"diffusion", "vocoder"}.issubset(source.networks)
    return {"decoder": "diffusion" if complete or "hifigan" not in source.networks else "hifigan"}


def _target(precisions: Iterable[str]) -> dict[str, Any]:
    """What a bundle of graphs in these precisions runs on."""
    return {
        "backend": "onnx",
        "provider": "CPUExecutionProvider",
        "device": "cpu",
        "device_name": platform.processor() or platform.machine(),
        "compute_capability": None,
        "driver": None,
        "libraries": {package: _version(package) for package in ("onnxruntime", "onnx", "torch", "numpy")},
        "requires": {"onnxruntime": max(MIN_ONNXRUNTIME[precision] for precision in precisions)},
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None
