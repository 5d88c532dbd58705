"""Speech over HTTP: what it says, and what becomes of clients that leave."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from scheduling import TOKENIZER
from serving import SHORT, Running, Slow, alone, assert_sound, begun, error, samples, serving

from tortoise_rt import config
from tortoise_rt.server.app import make_app
from tortoise_rt.server.encoding import FORMATS, encode
from tortoise_rt.server.fields import SETTINGS, Wish
from tortoise_rt.server.run import Server, listen
from tortoise_rt.server.service import Service, Speech
from tortoise_rt.sinks import to_16_bits
from tortoise_rt.spec import SAMPLE_RATE
from tortoise_rt.text import Tokenizer
from tortoise_rt.tts import TextToSpeech
from tortoise_rt.voice import load_voice

pytestmark = pytest.mark.usefixtures("own_voices")


# --- speech ---


def test_sound_is_that_of_python(server: Running) -> None:
    answer = server.speak()
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("audio/pcm")
    assert answer.headers["x-seed"] == "7"
    assert_sound(answer.content, alone())


def test_every_setting_reaches_the_sound(server: Running) -> None:
    fields = {"temperature": 0.5, "top_k": 20, "num_autoregressive_samples": 3, "decoder": "diffusion",
              "diffusion_iterations": 4, "sampler": "ddim", "pause": 0.5}  # fmt: skip
    assert_sound(server.speak(**fields).content, alone(**fields))


def test_without_splitting_it_is_one_clip(server: Running) -> None:
    voice = load_voice("alto")
    assert voice is not None
    tts = TextToSpeech(engine=server.service.engine, tokenizer_vocab_file=server.service.tokenizer.path)  # type: ignore[union-attr]
    wav = tts.tts(
        SHORT, list(voice.clips), use_deterministic_seed=7, verbose=False, max_mel_tokens=40, decoder="hifigan",
        num_autoregressive_samples=1,
    )  # fmt: skip
    assert_sound(server.speak(split=False).content, to_16_bits(wav.reshape(-1)))


def test_a_checked_clip_is_that_of_python(server: Running) -> None:
    answer = server.speak(split=False, check=True, max_retries=1)
    voice = load_voice("alto")
    assert voice is not None
    tts = TextToSpeech(engine=server.service.engine, tokenizer_vocab_file=server.service.tokenizer.path)  # type: ignore[union-attr]
    wav = tts.tts(
        SHORT, list(voice.clips), use_deterministic_seed=7, verbose=False, max_mel_tokens=40, decoder="hifigan",
        num_autoregressive_samples=1, check=True, max_retries=1,
    )  # fmt: skip
    assert_sound(answer.content, to_16_bits(wav.reshape(-1)))


def test_many_at_once_are_each_as_alone(server: Running) -> None:
    wanted = {seed: alone(seed=seed) for seed in range(6)}
    found: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: server.speak(seed=seed).content}))
        for seed in wanted
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, sound in wanted.items():
        assert_sound(found[seed], sound)
    assert len({*found.values()}) == 6
    server.settled()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stream", [True, False])
def test_formats_hold_the_sound(server: Running, name: str, stream: bool) -> None:
    answer = server.speak(response_format=name, stream=stream)
    assert answer.headers["content-type"] == FORMATS[name].media_type
    assert ("content-length" in answer.headers) is not stream
    wanted = samples(alone()) / 32767
    if name == "pcm":
        found = samples(answer.content) / 32767
    elif (
        name == "flac" and stream
    ):  # libsndfile alone cannot read one whose length was not known when it was begun
        whole = server.speak(response_format=name, stream=False).content
        head = 4 + 4 + 34  # "fLaC", and the block with sizes, length and checksum, which is the first
        assert answer.content[:4] == b"fLaC" and answer.content[head:] == whole[head:]
        return
    else:
        found, rate = soundfile.read(io.BytesIO(answer.content))
        assert rate == SAMPLE_RATE
    if name in ("wav", "pcm", "flac"):
        assert np.abs(found - wanted).max() < 1e-4
    else:  # codecs have a delay, and may add some silence
        assert abs(len(found) - len(wanted)) <= 3 * 1152
        spectra = [np.abs(np.fft.rfft(wav, 1 << 17))[:20000] for wav in (found, wanted)]
        assert np.corrcoef(*spectra)[0, 1] > 0.95


@pytest.mark.parametrize("name", FORMATS)
def test_formats_can_be_read_by_those_who_ask_for_nothing_else(server: Running, name: str) -> None:
    answer = server.speak(response_format=name)
    assert ("content-length" in answer.headers) is (name == "flac")
    if name != "pcm":
        found, rate = soundfile.read(io.BytesIO(answer.content))
        assert rate == SAMPLE_RATE and abs(len(found) - len(samples(alone()))) <= 3 * 1152


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_whole_files_have_the_samples_of_pcm(name: str) -> None:
    wav = np.linspace(-1.1, 1.1, 30_001, dtype=np.float32)
    found, _ = soundfile.read(io.BytesIO(encode(name, wav)), dtype="int16")
    assert found.tobytes() == to_16_bits(wav)


def test_files_say_that_a_machine_speaks(server: Running) -> None:
    for stream in (True, False):
        content = server.speak(response_format="wav", stream=stream).content
        assert b"Synthetic speech" in content and b"seed 7" in content


def test_events_hold_the_sound(server: Running) -> None:
    answer = server.speak(stream_format="sse")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"} and len(events) > 2
    assert_sound(b"".join(base64.b64decode(event["audio"]) for event in events[:-1]), alone())
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["usage"]["input_tokens"] == len(SHORT)


def test_the_official_client_works() -> None:
    openai = pytest.importorskip("openai")
    with serving(keys={"me": "a-key-of-sixteen-"}) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="a-key-of-sixteen-", max_retries=0)
        body = {"max_mel_tokens": 40, "seed": 7}
        made = client.audio.speech.create(
            model="tts-1", voice="alto", input=SHORT, response_format="pcm", extra_body=body
        )
        assert_sound(made.read(), alone())
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alto", input=SHORT, response_format="pcm", extra_body=body
        ) as answer:
            assert_sound(b"".join(answer.iter_bytes()), alone())
        assert "tts-1" in [model.id for model in client.models.list()]
        with pytest.raises(openai.BadRequestError, match='unknown voice "alloy"'):
            client.audio.speech.create(model="tts-1", voice="alloy", input=SHORT)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()


# --- the server itself ---


def test_it_tells_how_it_is(server: Running) -> None:
    assert server.http.get("/readyz").json() == {"status": "ready"}
    server.speak()
    text = server.http.get("/metrics").text
    for name in (
        "tortoise_rt_in_flight 0.0", "tortoise_rt_rows 16.0", "tortoise_rt_rows_used 0.0", "process_resident_memory_bytes",
        'tortoise_rt_first_audio_seconds_bucket{le="+Inf"}', "tortoise_rt_codes_total",
    ):  # fmt: skip
        assert name in text
    assert server.http.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert server.http.get("/healthz", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"


def test_stopping_lets_what_speaks_finish() -> None:
    engine = Slow()
    with serving(engine) as server:
        engine.pause = 0.02
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(server.speak().content))
        thread.start()
        begun(engine)
        server.server.drain()
        time.sleep(0.05)
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert "stopping" in error(httpx.post(f"{server.url}/v1/audio/speech", json={"input": SHORT}), 503)
        thread.join()
        assert_sound(found[0], alone())
        until = time.monotonic() + 10
        while not server.server.should_exit and time.monotonic() < until:
            time.sleep(0.01)
        assert server.server.should_exit


def test_the_document_says_what_is_checked(server: Running) -> None:
    """Each setting's bounds in the document are those of the code: both sides of each are tried."""
    assert SETTINGS.keys() == config.ARGUMENTS.keys()
    document = server.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")

    def taken(name: str, value: Any) -> bool:
        try:
            config.make_settings(**{"num_autoregressive_samples": 4096, name: value})
        except config.SettingsError:
            return False
        return True

    for name, schema in SETTINGS.items():
        if name == "k":
            continue
        step = 1 if schema["type"] == "integer" else 1e-9
        for bound, sign in (("minimum", -1), ("maximum", 1)):
            if bound in schema:
                assert taken(name, schema[bound]) and not taken(name, schema[bound] + sign * step), name
        if "exclusiveMinimum" in schema:
            assert not taken(name, schema["exclusiveMinimum"]) and taken(
                name, schema["exclusiveMinimum"] + step
            ), name
        for choice in schema.get("enum", []):
            assert taken(name, choice)
        assert not taken(name, "nothing of the kind")


def test_who_sends_no_head_of_a_request_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tortoise_rt.server.run.HEAD_SECONDS", 0.1)
    engine = Slow()
    with serving(engine) as server:
        began = time.monotonic()
        for begin in (b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as silent:
                silent.sendall(begin)
                with contextlib.suppress(ConnectionResetError):
                    while silent.recv(4096):
                        pass
        assert time.monotonic() - began < 3
        engine.pause = 0.02
        began = time.monotonic()
        assert_sound(server.speak().content, alone())  # an answer may take longer
        assert time.monotonic() - began > 0.5


def test_a_server_that_cannot_speak_ends() -> None:
    engine = Slow()

    def fail(graph: str, rows: int) -> None:
        raise RuntimeError("no memory")

    engine.before = fail
    service = Service(engine, Tokenizer(TOKENIZER))
    server = Server(make_app(service), service, 1)
    server.run([listen("127.0.0.1", 0)])
    assert server.failed and not service.ready


def test_the_servers_time_grows_with_the_sound_and_the_callers_does_not(server: Running) -> None:
    """Who listens while it is made takes as long as the sound."""
    service = server.service
    open_end, strict = (Speech(service, Wish(seed=1, timeout=seconds), SHORT) for seconds in (None, 5.0))
    assert open_end.limit == service.limits.timeout and strict.limit == 5
    for speech in (open_end, strict):
        speech.samples = 1000 * SAMPLE_RATE
    assert open_end.limit == service.limits.timeout + 2000 and strict.limit == 5
