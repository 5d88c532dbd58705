"""Checkpoints -> an engine bundle, written whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tortoise_rt._version import __version__
from tortoise_rt.backends.tensorrt import open_bundle as open_plans
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
from tortoise_rt.engine import Engine
from tortoise_rt.errors import BundleError, OutputError
from tortoise_rt.spec import GRAPHS, Dims
from tortoise_rt.text import Tokenizer

from .checkpoints import Checkpoints
from .graph_files import Job, Progress, Steps, build_plans, forms, write_graphs
from .kernels import can_compile, compile_kernels
from .parity import GraphParity, check_graphs, require_parity
from .publish import bundle_files, locked, publish, restore
from .targets import AUTO, choose_capabilities, describe, find_gpu, find_target
from .tensorrt import WORKSPACE_MIB

AUTO_BYTES = 1.7  #: of every form of the graphs, for each byte of weights
PLAN_BYTES = 2.0  #: of graphs and of plans built from them
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
    target: str = "cpu",
    precision: str = "fp32",
    compute_capabilities: Sequence[str] = (),
    workspace_mib: int = WORKSPACE_MIB,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Bundle, list[GraphParity]]:
    """Export every network of a checkpoint folder for one of ``targets.TARGETS``; -> the bundle and its parity report.

    ``record_source`` keeps the checkpoint folder's path in the manifest, for verify and the torch backend.
    ``precision`` is one that the target has; for the CPU also AUTO: what is fastest here and near enough to fp32, graph
    by graph (see ``export.tune``; the manifest's "tuning" has what was measured). ``compute_capabilities``, as "8.9",
    are what tensorrt-rtx builds for, all that it and the precision can by default; ``workspace_mib`` is the most memory that a layer may
    take while plans are built. Plans are compared where there is a GPU; the graphs that they are built from always.
    ``tokenizer`` is the tokenizer.json to take along; by default the one beside the checkpoints, if any.
    Written under a temporary name beside ``output`` and renamed when complete, under a lock. Raises
    OutputError when that cannot be done, CheckpointError for unusable checkpoints, ExportError when a graph
    does not agree with its module.
    """
    chosen_target = find_target(target, precision, compute_capabilities)
    library, gpu = find_gpu(chosen_target)
    capabilities = choose_capabilities(chosen_target, precision, library, gpu, compute_capabilities)
    if gpu is not None and gpu.compute_capability not in capabilities:
        gpu = None  # it cannot run what is built
    job = Job(chosen_target, precision, library, gpu, capabilities, workspace_mib)
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
            _check_output(output, source, force, _bytes_needed(job))
            temporary.mkdir()
            folder = source.folder.resolve()
            model = {"name": name or folder.name, "folder": str(folder) if record_source else ""}
            if chosen is not None:
                shutil.copyfile(chosen, temporary / "tokenizer.json")
            report, verified = _write(source, temporary, model, check, job, progress)
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


def _bytes_needed(job: Job) -> float:
    """Of a folder that is written, for each byte of weights."""
    return PLAN_BYTES if job.target.library else AUTO_BYTES if job.precision == AUTO else 1.0


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
    source: Checkpoints, folder: Path, model: dict[str, Any], check: bool, job: Job, progress: Progress
) -> tuple[list[GraphParity], dict[str, Identity]]:
    """Write all graphs, or plans, and the manifest into ``folder``; -> parity, and the files as hashed."""
    graphs = [graph for graph, spec in GRAPHS.items() if spec.network in source.networks]
    plans = bool(job.target.library)
    per_graph = check + plans + (check and plans and job.gpu is not None)
    carries = plans and can_compile()
    total = (
        len(source.networks) * 2 + sum(len(forms(g, job)) for g in graphs) + len(graphs) * per_graph + carries
    )
    steps = Steps(progress, total)
    place = folder / "graphs" if plans else folder
    place.mkdir(exist_ok=True)
    written = write_graphs(source, graphs, place, job, steps)
    report = _compare(written.engine(job.target.family), source, steps) if check else []
    names = build_plans(written, folder, job, steps) if plans else written.names
    kernels = _compile(written.dims, folder, job, steps) if carries else {}
    if plans:
        shutil.rmtree(place)
    sources = {}
    for network in source.networks:
        path = source.path(network)
        steps(f"hashing {path.name}")
        sources[path.name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    files = sorted(folder.iterdir())
    verified = {path.name: identity(path.stat()) for path in files}
    precisions = written.precisions
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "tortoise_rt": __version__,
        "model": {
            **model,
            "sources": sources,
            "fingerprint": source.fingerprint(),
            "notice": source.config.get("notice", ""),
        },
        "target": describe(job.target, precisions.values(), job.library, job.gpu, job.capabilities),
        "precision": precisions,
        "graphs": names,
        "files": {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in files},
        "dims": written.dims,
        "defaults": source.config.get("defaults") or _defaults(source),
    }
    if kernels:
        manifest["kernels"] = kernels
    if written.tuning:
        manifest["tuning"] = written.tuning
    if check and plans and job.gpu is not None:
        report = _compare(open_plans(Bundle(folder, manifest)), source, steps)
    if report:
        manifest["parity"] = {p.graph: {"error": p.error, "bound": p.bound, "judge": p.judge} for p in report}
    manifest["sha256"] = manifest_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    progress("done", steps.total, steps.total)
    return report, verified


def _compile(dims: Dims, folder: Path, job: Job, steps: Steps) -> dict[str, Any]:
    """The kernels of the GPUs that plans are built for; -> what the manifest says of them."""
    what = "compiling kernels"
    steps(what)
    return compile_kernels(
        dims,
        job.capabilities,
        folder,
        lambda which: steps.progress(f"{what}: {which}", steps.done, steps.total),
    )


def _compare(engine: Engine, source: Checkpoints, steps: Steps) -> list[GraphParity]:
    """Each graph beside its module; raises ExportError for one that is out of its bound."""
    report = []
    for parity in check_graphs(engine, source):
        report.append(parity)
        steps(f"checked {parity.graph}")
    require_parity(report)
    return report


def _defaults(source: Checkpoints) -> dict[str, Any]:
    """The decoder these checkpoints can run: diffusion when they have it."""
    complete = {"diffusion", "vocoder"}.issubset(source.networks)
    return {"decoder": "diffusion" if complete or "hifigan" not in source.networks else "hifigan"}
