"""The C library's functions: what they give, and what they say of what they cannot take. Called from this process."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from capi import EXAMPLES, Library, compiled, need_compiler, run
from conftest import ROOT

from tortoise_rt._version import __version__
from tortoise_rt.bundle import demo_folder
from tortoise_rt.capi import build, embedded, structs
from tortoise_rt.capi.status import Status
from tortoise_rt.capi.structs import Audio
from tortoise_rt.config import ARGUMENTS
from tortoise_rt.errors import MissingDependency, OutputError

HEADER = (ROOT / "runtime" / "capi" / "tortoise_rt.h").read_text()
STRUCTS = {
    "trt_engine_options": structs.EngineOptions, "trt_engine_info": structs.EngineInfo, "trt_settings": structs.Settings,
    "trt_request": structs.Request, "trt_clip": structs.Clip, "trt_chunk": structs.Chunk, "trt_audio": Audio,
}  # fmt: skip
NULL, NOBODY = None, ctypes.c_void_p(0x7FFF12345678)
by = ctypes.byref


@pytest.fixture
def engine(lib: Library) -> Iterator[ctypes.c_void_p]:
    opened = lib.open()
    yield opened
    lib.call("engine_close", opened)


# --- the header is what the library is ---


def test_python_knows_the_structs_as_the_compiler_does(capi: Path, tmp_path: Path) -> None:
    lines, wanted = [], []
    for name, kind in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        wanted.append(f"{name} {ctypes.sizeof(kind)}")
        for field, _ in kind._fields_:
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
            wanted.append(f"{name}.{field} {getattr(kind, field).offset}")
    source = tmp_path / "layout.c"
    source.write_text(
        f"#include <stdio.h>\n#include <tortoise_rt.h>\nint main(void) {{ {' '.join(lines)} return 0; }}\n"
    )
    assert run(compiled(capi, source, tmp_path / "layout"), cwd=tmp_path).stdout.splitlines() == wanted
    for name, kind in STRUCTS.items():
        body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", HEADER, re.DOTALL)
        assert body is not None
        plain = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
        fields = [
            word for line in plain.split(";") for word in re.findall(r"(\w+)(?:\[\d+\])?(?=\s*(?:,|$))", line)
        ]
        assert fields == [field for field, _ in kind._fields_]  # none is left out
        assert all(getattr(kind, field).offset % 8 == 0 for field, _ in kind._fields_)


def test_codes_are_the_headers(lib: Library) -> None:
    codes = {
        name: int(value)
        for name, value in re.findall(r"\b(TRT_(?:OK|PENDING|END|ERROR_\w+)) = (\d+)", HEADER)
    }
    known = {f"TRT_{'' if status < 10 else 'ERROR_'}{status.name}": int(status) for status in Status}
    assert {**known, "TRT_ERROR_FORK": 24} == codes
    assert {name: lib.dll.trt_status_name(value).decode() for name, value in codes.items()} == {
        n: n for n in codes
    }
    assert lib.dll.trt_status_name(99) == b"unknown status"


def test_versions(lib: Library) -> None:
    assert lib.dll.trt_version().decode() == __version__
    assert f"#define TRT_API_VERSION {lib.call('api_version')}\n" in HEADER


def test_settings_are_those_of_python() -> None:
    left_out = {"length_penalty", "kv_positions"}
    names = {name for name, _ in structs.Settings._fields_} - {"struct_size", "preset"}
    assert names == set(ARGUMENTS) - left_out


def test_the_headers_program_is_the_example() -> None:
    shown = HEADER[
        HEADER.index(" *     #include <stdio.h>") : HEADER.index(" *     $ tortoise-rt capi build")
    ]
    lines = [line[7:] for line in shown.splitlines()]
    assert "\n".join(lines).strip() == (EXAMPLES / "hello.c").read_text().strip()


def test_every_function_is_exported_and_declared(capi: Path) -> None:
    dll = ctypes.CDLL(str(capi / "lib" / "libtortoise_rt.so"))
    declared = re.findall(r"^(?:int|void|const char \*)\s?(trt_\w+)\(", HEADER, re.MULTILINE)
    assert len(declared) > 30 and all(hasattr(dll, name) for name in declared)
    need_compiler("nm")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", dll._name], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[-1] for line in listed.splitlines()} == set(declared)  # and nothing else is


# --- what goes wrong is a code and a line ---


def test_null_pointers(lib: Library, engine: ctypes.c_void_p) -> None:
    request, audio, handle, number = lib.request(), Audio(), ctypes.c_void_p(), ctypes.c_float()
    size = ctypes.c_size_t(8)
    calls = [
        ("engine_options_init", NULL, size), ("settings_init", NULL, size), ("request_init", NULL, size),
        ("engine_open", NULL, NULL), ("engine_get_info", NULL, by(structs.EngineInfo())), ("engine_get_info", engine, NULL),
        ("voice_name", NULL, 0, by(handle), size), ("voice_name", engine, 0, NULL, size),
        ("voice_load", NULL, b"alto", 0, by(handle)), ("voice_load", engine, b"alto", 0, NULL),
        ("voice_from_clips", engine, NULL, size, by(handle)),
        ("voice_from_clips", engine, by(structs.Clip(None, 9, 22050)), ctypes.c_size_t(1), by(handle)),
        ("voice_from_latents", engine, NULL, size, NULL, size, by(handle)),
        ("voice_latents", NULL, by(number), size, NULL, size), ("voice_latents", NOBODY, NULL, size, NULL, size),
        ("synthesize", NULL, by(request), by(audio)), ("synthesize", engine, NULL, by(audio)),
        ("synthesize", engine, by(request), NULL),
        ("submit", engine, by(request), NULL), ("submit", engine, NULL, by(handle)), ("submit", NULL, by(request), by(handle)),
        ("job_poll", NULL), ("job_wait", NULL, 0.0), ("job_audio", NULL, 0, by(audio)), ("job_audio", NOBODY, 0, NULL),
        ("job_problems", NULL, 0, by(handle), size), ("job_problems", NOBODY, 0, NULL, size), ("job_cancel", NULL),
        ("stream_open_live", engine, NULL, by(handle)), ("stream_open_live", engine, by(request), NULL),
        ("stream_feed", NULL, b"a"), ("stream_feed", NOBODY, NULL), ("stream_finish", NULL), ("speak", NULL, by(request), NULL, NULL),
        ("stream_open", engine, by(request), NULL), ("stream_open", engine, NULL, by(handle)),
        ("stream_next", NULL, 0.0, by(structs.Chunk())), ("stream_next", NOBODY, 0.0, NULL), ("stream_cancel", NULL),
        ("speak", engine, by(request), NULL, NULL), ("write_wav", NULL, by(number), size), ("write_wav", b"a.wav", NULL, size),
    ]  # fmt: skip
    for name, *arguments in calls:
        assert lib.fails(Status.ARGUMENT, name, *arguments).endswith(" is NULL"), name
    for kind in ("engine", "voice", "job", "stream"):
        lib.ok(f"{kind}_close", NULL)
    lib.dll.trt_free(NULL)


def test_a_request_without_text(lib: Library, engine: ctypes.c_void_p) -> None:
    request, audio = lib.request(), Audio()
    request.text = None
    assert "has no text" in lib.fails(Status.TEXT, "synthesize", engine, by(request), by(audio))
    assert audio.samples is None and audio.count == 0


@pytest.mark.parametrize("size", [0, 4, 12, 2**40, 1000])
def test_wrong_struct_sizes(lib: Library, engine: ctypes.c_void_p, size: int) -> None:
    request, settings, audio, handle = lib.request(), lib.settings(), Audio(), ctypes.c_void_p()
    info, options = structs.EngineInfo(struct_size=size), structs.EngineOptions(struct_size=size)
    with_settings = lib.request(settings=settings)
    settings.struct_size = request.struct_size = size
    for name, *arguments in [
        ("synthesize", engine, by(request), by(audio)), ("synthesize", engine, by(with_settings), by(audio)),
        ("submit", engine, by(with_settings), by(handle)), ("stream_open", engine, by(request), by(handle)),
        ("engine_open", by(options), by(handle)), ("engine_get_info", engine, by(info)),
        ("settings_init", by(settings), ctypes.c_size_t(size)),
    ]:  # fmt: skip
        message = lib.fails(Status.ARGUMENT, name, *arguments)
        assert re.match(
            rf"struct_size of trt_\w+ is {size}; this library \(API 1\) knows sizes of 8 to \d+", message
        )


def test_an_older_smaller_struct_works(lib: Library, engine: ctypes.c_void_p) -> None:
    """A program that was compiled before fields were added: those are as if they were not set, whatever is behind it."""
    small = structs.Settings.top_p.offset  # up to temperature
    buffer = (ctypes.c_char * ctypes.sizeof(structs.Settings))(*([0xAB] * ctypes.sizeof(structs.Settings)))
    lib.ok("settings_init", buffer, ctypes.c_size_t(small))
    assert bytes(buffer[small:]) == b"\xab" * (len(buffer) - small)  # nothing behind it is written
    older = structs.Settings.from_buffer(buffer)
    older.decoder, older.num_autoregressive_samples, older.max_mel_tokens = b"hifigan", 1, 40
    assert lib.clip(engine, lib.request(settings=older)) == lib.clip(engine, lib.request())

    request = lib.request()
    request.struct_size = structs.Request.priority.offset
    request.priority, request.timeout = 77, float("nan")  # not its own
    assert lib.clip(engine, request) == lib.clip(engine, lib.request())

    info = structs.EngineInfo(struct_size=16, has_hifigan=-7)
    lib.ok("engine_get_info", engine, by(info))
    assert (info.has_diffusion, info.has_hifigan) == (1, -7)


def test_handles_that_are_not_open(lib: Library, engine: ctypes.c_void_p) -> None:
    request, audio, job, stream, voice = lib.request(), Audio(), *(ctypes.c_void_p() for _ in range(3))
    lib.ok("voice_load", engine, b"random", 0, by(voice))
    lib.ok("submit", engine, by(request), by(job))
    lib.ok("stream_open", engine, by(request), by(stream))
    for wrong in (engine, voice, job, NOBODY):  # handles of other kinds
        lib.fails(Status.CLOSED, "stream_next", wrong, 0.0, by(structs.Chunk()))
    for kind, handle in (("job", job), ("stream", stream), ("voice", voice)):
        lib.ok(f"{kind}_close", handle)
        assert lib.fails(Status.CLOSED, f"{kind}_close", handle).startswith(
            f"there is no such {kind}: it was closed already"
        )
    lib.fails(Status.CLOSED, "job_wait", job, -1.0)
    lib.fails(Status.CLOSED, "job_audio", job, 0, by(audio))
    lib.fails(Status.CLOSED, "stream_feed", stream, b"a")
    lib.fails(Status.CLOSED, "stream_cancel", stream)
    request.voice = voice.value
    assert "no such voice" in lib.fails(Status.CLOSED, "synthesize", engine, by(request), by(audio))
    lib.ok("engine_close", engine)
    for name, *arguments in [("engine_close", engine), ("synthesize", engine, by(request), by(audio)),
                             ("engine_get_info", engine, by(structs.EngineInfo(struct_size=8)))]:  # fmt: skip
        assert "no such engine" in lib.fails(Status.CLOSED, name, *arguments)


def test_an_engine_takes_what_is_its_own_with_it(lib: Library) -> None:
    engine, other = lib.open(), lib.open()
    voice, job, stream = (ctypes.c_void_p() for _ in range(3))
    lib.ok("voice_load", engine, b"random", 0, by(voice))
    request = lib.request(voice=voice.value)
    assert "another engine's" in lib.fails(Status.VOICE, "submit", other, by(request), by(job))
    lib.ok("submit", engine, by(request), by(job))
    lib.ok("stream_open", engine, by(request), by(stream))
    lib.ok("engine_close", engine)
    lib.fails(Status.CLOSED, "voice_close", voice)
    lib.fails(Status.CLOSED, "job_poll", job)
    lib.fails(Status.CLOSED, "stream_next", stream, -1.0, by(structs.Chunk()))
    lib.ok("engine_close", other)


def test_bad_paths_and_bundles(lib: Library, tmp_path: Path) -> None:
    def refused(status: Status, **values: object) -> str:
        options, handle = structs.EngineOptions(), ctypes.c_void_p()
        lib.ok("engine_options_init", by(options), ctypes.c_size_t(ctypes.sizeof(options)))
        for name, value in values.items():
            setattr(options, name, value)
        message = lib.fails(status, "engine_open", by(options), by(handle))
        assert handle.value is None and "\n" not in message
        return message

    assert "no engine at /nowhere" in refused(Status.BUNDLE, engine=b"/nowhere")
    assert "unknown backend 'onx'" in refused(Status.ENGINE, backend=b"onx")
    assert "name one of the two" in refused(Status.SETTINGS, engine=b"/a", checkpoints=b"/b")
    assert "voice folder /nowhere does not exist" in refused(
        Status.VOICE, backend=b"fake", voices=b"/nowhere"
    )
    assert "is not UTF-8" in refused(Status.ARGUMENT, engine=b"\xff\xfe")
    assert "rows is 0" in refused(Status.SETTINGS, backend=b"fake", rows=0)
    assert "strict is 2" in refused(Status.SETTINGS, backend=b"fake", strict=2)
    damage = [
        ("manifest.json", b"{"),
        ("manifest.json", b"\0" * 99),
        ("tokenizer.json", b"[]"),
        ("ar_step.onnx", b""),
    ]
    for number, (name, content) in enumerate(damage):
        copy = tmp_path / str(number)
        copy.mkdir()
        for file in demo_folder().iterdir():
            if file.is_file() and file.name != name:
                (copy / file.name).symlink_to(file)
        assert (demo_folder() / name).is_file()
        (copy / name).write_bytes(content)
        refused(Status.BUNDLE, engine=str(copy).encode())


def test_what_a_request_cannot_be(lib: Library, engine: ctypes.c_void_p, tmp_path: Path) -> None:
    audio, stream, voice = Audio(), ctypes.c_void_p(), ctypes.c_void_p()

    def refused(status: Status, request: structs.Request, name: str = "synthesize") -> str:
        message = lib.fails(status, name, engine, by(request), by(audio if name == "synthesize" else stream))
        assert message and "\n" not in message
        return message

    assert "not UTF-8" in refused(Status.TEXT, lib.request(b"\xff\xfe"))
    refused(Status.TEXT, lib.request(""))
    assert "tokens" in refused(Status.TEXT, lib.request("word " * 1000))
    assert "temperature is 0" in refused(Status.SETTINGS, lib.request(settings=lib.settings(temperature=0)))
    assert "greedy is 3" in refused(Status.SETTINGS, lib.request(settings=lib.settings(greedy=3)))
    assert "not nan" in refused(Status.SETTINGS, lib.request(settings=lib.settings(top_p=float("nan"))))
    assert 'Did you mean "fast"' in refused(
        Status.SETTINGS, lib.request(settings=lib.settings(preset=b"fasst"))
    )
    assert "priority is 3" in refused(Status.SETTINGS, lib.request(priority=3))
    assert "pause is 1.0, which is of streams" in refused(Status.SETTINGS, lib.request(pause=1.0))
    assert "timeout is 1.0, which is of clips" in refused(
        Status.SETTINGS, lib.request(timeout=1.0), "stream_open"
    )
    assert "pause is 99" in refused(Status.SETTINGS, lib.request(pause=99.0), "stream_open")
    assert 'unknown voice "alot". Did you mean "alto"' in lib.fails(
        Status.VOICE, "voice_load", engine, b"alot", 1, by(voice)
    )
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"RIFF")
    lib.fails(Status.AUDIO, "voice_load", engine, str(clip).encode(), 1, by(voice))
    lib.fails(Status.VOICE, "voice_load", engine, str(clip).encode(), 0, by(voice))  # names only
    one = np.zeros(8, np.float32)
    wav = str(tmp_path / "missing" / "a.wav").encode()
    lib.fails(Status.OUTPUT, "write_wav", wav, ctypes.c_void_p(one.ctypes.data), ctypes.c_size_t(8))
    for count in (2**62, 2**64 - 1):  # as where it was never set
        huge, at = ctypes.c_size_t(count), ctypes.c_void_p(one.ctypes.data)
        assert "is the count set?" in lib.fails(Status.ARGUMENT, "write_wav", b"a.wav", at, huge)
        one_clip = structs.Clip(one.ctypes.data, 8, 22050)
        lib.fails(Status.VOICE, "voice_from_clips", engine, by(one_clip), huge, by(voice))
    assert voice.value is None


def test_a_fault_of_ours(
    lib: Library, engine: ctypes.c_void_p, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Is a code and a line, wherever it is, and goes to the log whole."""
    info = structs.EngineInfo(struct_size=8)
    monkeypatch.setattr(embedded, "find_voices", lambda folders: {}["Knopf"])
    name = ctypes.create_string_buffer(8)
    message = lib.fails(Status.INTERNAL, "voice_name", engine, 0, name, ctypes.c_size_t(8))
    assert message == "KeyError: 'Knopf'"
    monkeypatch.setattr(embedded, "engine_info", lambda *arguments: {}["Lukas"])  # behind what catches all
    assert "engine_info failed: 'Lukas'" in lib.fails(Status.INTERNAL, "engine_get_info", engine, by(info))
    monkeypatch.setattr(embedded, "engine_info", lambda *arguments: None)
    assert lib.fails(Status.INTERNAL, "engine_get_info", engine, by(info)).startswith("engine_info failed: ")
    assert "Traceback" not in capfd.readouterr().err


def test_calls_leave_nothing_behind(lib: Library, engine: ctypes.c_void_p) -> None:
    """No Python object of a call outlives it. (Python itself keeps some to use again, fewer than one a call.)"""
    info = structs.EngineInfo(struct_size=ctypes.sizeof(structs.EngineInfo))

    def call(times: int) -> tuple[int, int]:
        for _ in range(times):
            lib.ok("engine_get_info", engine, by(info))
            lib.fails(Status.CLOSED, "job_poll", NOBODY)
        return sys.getallocatedblocks(), sys.getrefcount(embedded.job_wait)

    before, after = call(1000), call(1000)
    assert after[0] - before[0] < 500 and after[1] - before[1] < 5


def test_threads_of_c_are_not_remembered(lib: Library, engine: ctypes.c_void_p) -> None:
    """A service may have millions that come and go."""
    said: list[bytes] = []
    run_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    work = run_type(lambda _: said.append(lib.clip(engine, lib.request(seed=len(said)))))  # type: ignore[func-returns-value]
    pthread, thread = ctypes.CDLL(None), ctypes.c_ulong()
    for _ in range(5):
        assert pthread.pthread_create(by(thread), None, work, None) == 0
        assert pthread.pthread_join(thread, None) == 0
    assert len(set(said)) == 5
    assert not [known for known in threading.enumerate() if isinstance(known, threading._DummyThread)]


# --- building ---


def test_building_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="does not exist: create it"):
        build.build(tmp_path / "a" / "b")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(MissingDependency, match="there is no C compiler no-such-compiler: install one"):
        build.build(tmp_path / "c")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(MissingDependency, match="false cannot compile"):
        build.build(tmp_path / "c")
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(MissingDependency, match=r"Python\.h.*install Python's headers"):
        build.build(tmp_path / "c")
