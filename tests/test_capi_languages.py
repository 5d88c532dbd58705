"""The C library's examples: C++, Rust, a server, CMake."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from capi import EXAMPLES, SECONDS, TOKENIZER, compiled, need_compiler, run

from tortoise_rt import TextToSpeech
from tortoise_rt._version import __version__
from tortoise_rt.voice import load_voice


def test_cpp(capi: Path, tmp_path: Path) -> None:
    done = run(compiled(capi, EXAMPLES / "hello.cpp", tmp_path / "hello"), cwd=tmp_path)
    assert done.stdout.endswith(" s of speech\n") and done.stderr == ""
    say = TextToSpeech().tts
    for name, text, voice in [("morning", "Good morning.", "alto"), ("night", "And good night.", "tenor")]:
        given = load_voice(voice)
        assert given is not None
        wav = say(text, voice_samples=list(given.clips), use_deterministic_seed=7)[0, 0]
        made, _ = soundfile.read(tmp_path / f"{name}.wav", dtype="float32")
        assert len(made) == len(wav) and np.abs(made - wav).max() < 1e-3


CPP = """
#include <cassert>
#include <cstring>
#include <tortoise_rt.hpp>
int main(int, char **arguments) {
    trt::options options;
    options.backend = "fake";
    options.tokenizer = arguments[1];
    trt::engine engine(options), moved(std::move(engine));
    trt::settings settings;
    settings.decoder = "hifigan";
    settings.num_autoregressive_samples = 1;
    settings.max_mel_tokens = 40;
    trt::request request("Hello there. And more.");
    request.settings = &settings;
    try { moved.load_voice("nobody"); assert(false); }
    catch (const trt::error &error) { assert(error.status() == TRT_ERROR_VOICE && std::strstr(error.what(), "nobody")); }
    try { moved.speak(request, [](const trt_chunk &) { throw 5; }); assert(false); }
    catch (int thrown) { assert(thrown == 5); }
    int pieces = 0;
    moved.speak(request, [&](const trt_chunk &) { return ++pieces < 2; });
    assert(pieces == 2);
    std::size_t samples = 0;
    trt::stream stream = moved.stream(request);
    while (auto piece = stream.next()) samples += piece->count;
    assert(stream.ended() && samples > 0);
    request.text = "Hello there.";
    request.seed = 1;
    trt::job job = moved.submit(request);
    assert(job.wait() && job.audio().size() == moved.synthesize(request).size());
    assert(moved.info().has_hifigan == 1);
    settings.num_autoregressive_samples = 2;
    settings.k = 2;
    settings.check = 1;
    settings.max_retries = 1;
    trt::job several = moved.submit(request);
    assert(several.audio(1).size() > 0 && several.audio().problems() > 0 && several.audio().tries() == 2);
    assert(!several.problems(1).empty());
    try { several.audio(2); assert(false); }
    catch (const std::out_of_range &) {}
    trt_request nothing = request;
    nothing.settings = nullptr;
    nothing.text = nullptr;
    trt::stream live = moved.live(nothing);
    live.feed("Hel");
    live.feed("lo.");
    live.finish();
    assert(live.next());
}
"""


def test_cpp_wrapper(capi: Path, tmp_path: Path) -> None:
    source = tmp_path / "wrapper.cpp"
    source.write_text(CPP)
    run(compiled(capi, source, tmp_path / "wrapper"), str(TOKENIZER), cwd=tmp_path)


def test_rust(capi: Path, tmp_path: Path) -> None:
    need_compiler("rustc")
    lib = capi / "lib"
    command = ["rustc", "--edition", "2021", "-D", "warnings", str(EXAMPLES / "hello.rs"), "-L", str(lib), "-l", "tortoise_rt",
               "-C", f"link-arg=-Wl,-rpath,{lib}", "-o", str(tmp_path / "hello")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run(tmp_path / "hello", cwd=tmp_path)
    made, rate = soundfile.read(tmp_path / "crab.wav", dtype="float32")
    said = TextToSpeech().tts_stream("Hello from a crab. And good bye.", use_deterministic_seed=7)
    wav = np.concatenate(list(said))
    assert rate == 24000 and len(made) == len(wav) and np.abs(made - wav).max() < 1e-3


def test_a_server(programs: Path) -> None:
    """Three clients hear what they asked for; one that hangs up disturbs nobody; a signal ends it."""
    server = subprocess.Popen(
        [programs / "server", "0", "3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        texts = ["One for me. And two.", "Something else for you.", "A third is listening, too."]
        heard: dict[str, bytes] = {}

        def listen(text: str) -> None:
            with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
                client.sendall(text.encode() + b"\n")
                heard[text] = b"".join(iter(partial(client.recv, 65536), b""))

        with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
            client.sendall(b"Nobody hears the end of this. Or this. Or this. Or this.\n")
            assert client.recv(16)
        threads = [threading.Thread(target=listen, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        for text in texts:
            wav = np.concatenate(list(TextToSpeech().tts_stream(text, use_deterministic_seed=7)))
            made = np.frombuffer(heard[text], "<i2").astype(np.float32) / 32767
            assert len(made) == len(wav) and np.abs(made - np.clip(wav, -1, 1)).max() < 1e-3
    finally:
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=SECONDS)
    assert server.returncode == 0 and said == ""


def test_cmake(capi: Path, tmp_path: Path) -> None:
    need_compiler("cmake")
    sources = shutil.copytree(EXAMPLES, tmp_path / "sources")
    lists = sources / "CMakeLists.txt"
    found = lists.read_text().replace("tortoise_rt REQ", f"tortoise_rt {__version__} EXACT REQ")
    lists.write_text(found)
    for command in (
        ["-S", "sources", "-B", "build", f"-DCMAKE_PREFIX_PATH={capi}"],
        ["--build", "build"],
    ):
        done = subprocess.run(["cmake", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for program in ("hello", "hello_cpp"):
        assert (
            "no python at /none"
            in run(tmp_path / "build" / program, cwd=tmp_path, status=1, TORTOISE_RT_PYTHON="/none").stderr
        )
