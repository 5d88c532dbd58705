"""Writes a model repository for a Triton Inference Server."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from ..bundle import MANIFEST, read_bundle
from ..config import check_number
from ..errors import OutputError, SettingsError
from ..spec import SAMPLE_RATE

ENGINE = "engine"  #: a bundle's folder in that of a version
KIND_CPU, KIND_GPU = "KIND_CPU", "KIND_GPU"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")

MODEL = '''\
"""Speech by tortoise-rt, which must be installed where Triton's Python backend runs: pip install 'tortoise-rt[cpu,serve]', for GPUs [gpu,serve]."""

from pathlib import Path

from tortoise_rt.serving.triton_model import Model


class TritonPythonModel(Model):
    folder = Path(__file__).parent
'''
CONFIG = """\
# Speech from text. Responses are pieces of sound, as they are made: clients stream (gRPC), since there may be several of a request.
name: "{name}"
backend: "python"
max_batch_size: 0  # requests in flight are drawn side by side all the same
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "voice" data_type: TYPE_STRING dims: [ 1 ] optional: true }},  # a name; left out: the engine's own
  {{ name: "seed" data_type: TYPE_INT64 dims: [ 1 ] optional: true }},  # same seed, same sound
  {{ name: "settings" data_type: TYPE_STRING dims: [ 1 ] optional: true }}  # JSON: other fields of POST /v1/audio/speech
]
output [
  {{ name: "audio" data_type: TYPE_FP32 dims: [ -1 ] }},  # samples in [-1, 1], {rate} a second
  {{ name: "seed_used" data_type: TYPE_INT64 dims: [ 1 ] }}
]
instance_group [ {{ count: 1 kind: {kind} }} ]
parameters [
  {{ key: "rows" value: {{ string_value: "{rows}" }} }},  # samples that are drawn side by side
  {{ key: "strict" value: {{ string_value: "{strict}" }} }}  # the same to the bit whatever else is asked; slower
]
"""


def write_repository(
    repository: Path, name: str, engine: Path | None, *, gpu: bool, rows: int, strict: bool
) -> Path:
    """A model of a repository, which may have others; -> its folder. ``engine``: a bundle, which is copied into it.

    Raises SettingsError, BundleError, or OutputError where there is one of that name.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"the model's name is {name[:80]!r}; it must be of up to 63 letters, digits, _, . and -, and begin with none of the latter two"
        )
    check_number("rows", rows, 1, 1024, integer=True)
    bundle = None if engine is None else read_bundle(engine)
    config = CONFIG.format(
        name=name, rate=SAMPLE_RATE, kind=KIND_GPU if gpu else KIND_CPU, rows=rows, strict=str(strict).lower()
    )
    target = repository / name
    if target.exists():
        raise OutputError(f"there is a {target} already: remove it, or choose another --name")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}", dir=repository.parent) as folder:
            made = Path(folder) / name
            (made / "1").mkdir(parents=True)
            (made / "config.pbtxt").write_text(config, "utf-8")
            (made / "1" / "model.py").write_text(MODEL, "utf-8")
            if bundle is not None:
                for file in (MANIFEST, *bundle.manifest["files"]):
                    copy = made / "1" / ENGINE / file
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(bundle.folder / file, copy)
            repository.mkdir(exist_ok=True)
            made.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error}): name a folder in one that is there") from error
    return target
