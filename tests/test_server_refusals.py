"""Speech over HTTP: what is refused, and who may ask."""

from __future__ import annotations

import asyncio
import hmac
import re
from pathlib import Path
from typing import Any

import pytest
from scheduling import TOKENIZER
from serving import ONE, SHORT, Running, error, serving

from tortoise_rt import config
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.server.app import make_app
from tortoise_rt.server.limits import Keys
from tortoise_rt.server.service import Service
from tortoise_rt.text import Tokenizer

pytestmark = pytest.mark.usefixtures("own_voices")


# --- what is refused ---

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": ""}, "empty"),
    ({"input": "   "}, "empty"),
    ({"input": 3}, "must be a text"),
    ({"input": None}, "must be a text"),
    ({"input": "a" * 20001}, "20001 characters; the limit is 20000"),
    ({"input": "\u200b"}, "nothing to say"),
    ({"voice": "nobody"}, "unknown voice"),
    ({"voice": "../../etc/passwd"}, "unknown voice"),
    ({"voice": "/etc"}, "unknown voice"),
    ({"voice": {"id": 3}}, "voice must be a name"),
    ({"voice": ""}, "voice must be a name"),
    ({"model": "gpt-4"}, "unknown model"),
    ({"response_format": "aac"}, "unknown response_format"),
    ({"speed": 1.5}, "speed is 1.5; it must be 1"),
    ({"instructions": "Whisper."}, "in \\[brackets\\]"),
    ({"temprature": 1}, 'Did you mean "temperature"'),
    ({"temperature": 0}, "temperature is 0"),
    ({"temperature": "hot"}, "must be a number"),
    ({"temperature": True}, "must be a number"),
    ({"k": 2}, "k is 2"),
    ({"seed": -1}, "seed is -1"),
    ({"preset": "slow"}, "unknown preset"),
    ({"check": True}, "add split false"),
    ({"timeout": 0}, "timeout is 0"),
    ({"stream": "yes"}, "stream must be true or false"),
    ({"stream_format": "ogg"}, "unknown stream_format"),
    ({"input": "[no end"}, "\\["),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "says"), WRONG, ids=[str(fields)[:40] for fields, _ in WRONG])
def test_a_wrong_field_is_named(server: Running, fields: dict[str, Any], says: str) -> None:
    assert re.search(says, error(server.speak(**fields), 400))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"input": "\\ud800"}', b'{"seed": ' + b"9" * 5000 + b"}",
     b'{"input": "Hi.", "temperature": NaN}', b'{"input": "Hi.", "temperature": 1e999}'],
)  # fmt: skip
def test_a_body_that_is_none(server: Running, body: bytes) -> None:
    error(server.http.post("/v1/audio/speech", content=body), 400)


def test_a_body_too_large(server: Running) -> None:
    most = server.service.limits.body_bytes
    error(server.http.post("/v1/audio/speech", content=b"x" * (most + 1)), 413)
    pieces = (b"x" * 65536 for _ in range(most // 65536 + 1))
    error(server.http.post("/v1/audio/speech", content=pieces), 413)


def test_paths_and_methods_that_are_not_there(server: Running) -> None:
    assert "there is no /v1/nothing" in error(server.http.get("/v1/nothing"), 404)
    assert "GET is not for this path" in error(server.http.get("/v1/audio/speech"), 405)
    assert "BREW is not for this path" in error(server.http.request("BREW", "/v1/models"), 405)
    assert "BREW" not in server.http.get("/metrics").text  # what callers make up is not counted one by one
    assert "there is no model" in error(server.http.get("/v1/models/gpt-4"), 404)
    assert server.http.get("/v1/models/tts-1").json()["id"] == "tts-1"


def test_an_engine_that_lacks_a_network_says_so() -> None:
    from tortoise_rt.backends.fake import FakeEngine
    from tortoise_rt.spec import GRAPHS

    quick = frozenset(name for name in GRAPHS if not name.startswith(("diffusion", "univnet")))
    with serving(FakeEngine(quick)) as server:
        assert "diffusion" in error(server.speak(decoder="diffusion"), 422)
        assert server.speak().status_code == 200


# --- who may ask ---


def test_keys(caplog: pytest.LogCaptureFixture) -> None:
    right, other = "right-key-0123456789", "other-key-0123456789"
    with caplog.at_level("INFO", "tortoise_rt.server"), serving(keys={"anna": right, "ben": other}) as server:
        for header in (
            "",
            "Bearer wrong",
            f"Basic {right}",
            f"Bearer {right}x",
            f"bearer {right[:-1]}",
        ):
            answer = server.http.get("/v1/models", headers={"Authorization": header})
            assert "a key is needed" in error(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        for key in (right, other):
            assert (
                server.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
            )
        assert server.http.get("/metrics").status_code == 401
        assert server.http.get("/healthz").status_code == server.http.get("/readyz").status_code == 200
    facts = [record.facts for record in caplog.records if hasattr(record, "facts")]
    assert {"anna", "ben"} <= {fact.get("who") for fact in facts}
    assert right not in str(facts) + caplog.text and other not in str(facts) + caplog.text


def test_a_key_takes_as_long_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of all keys are compared, each by the function that does not stop at the first difference."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    keys = Keys({name: name * 16 for name in "abc"})
    for key, who in (("a" * 16, "a"), ("c" * 16, "c"), ("a" * 15 + "b", None), ("", None), ("\ud800", None)):
        compared.clear()
        assert keys.name_of(key) == who
        assert [(len(one), len(other)) for one, other in compared] == [(32, 32)] * 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no keys"),
        ("anna short", "line 1"),
        ("anna 0123456789abcd\u00e9\u00e8", "signs of ASCII"),
        ("anna", "line 1"),
        ("a aaaaaaaaaaaaaaaa\na bbbbbbbbbbbbbbbb", "line 2"),
    ],
)
def test_files_of_keys(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content, "utf-8")
    with pytest.raises(config.SettingsError, match=says):
        Keys.read(path)
    path.write_text("# ours\nanna 0123456789abcdef  # hers\n\nben fedcba9876543210\n")
    assert Keys.read(path).name_of("fedcba9876543210") == "ben"
    with pytest.raises(config.SettingsError, match="cannot read the keys"):
        Keys.read(tmp_path / "none")


def test_pages_of_other_sites_and_other_names_are_kept_out() -> None:
    with serving(hosts={"127.0.0.1", "localhost"}, origins=("https://good.example",)) as server:
        ask = server.http.get
        assert "evil.example" in error(ask("/v1/models", headers={"Origin": "https://evil.example"}), 403)
        for none in ("null", "", "http://[", "http://\u2100.com", f"{server.url}/"):
            error(ask("/v1/models", headers={"Origin": none.encode()}), 403)
        assert "not called" in error(ask("/v1/models", headers={"Host": "evil.example"}), 403)
        assert ask("/v1/models", headers={"Origin": server.url}).status_code == 200
        assert ask("/v1/models", headers={"Host": f"localhost:{server.port}"}).status_code == 200
        good = ask("/v1/models", headers={"Origin": "https://good.example"})
        assert good.headers["access-control-allow-origin"] == "https://good.example"


def test_limits_of_each_caller() -> None:
    with serving(keys={"anna": "a" * 16, "ben": "b" * 16}, per_minute=2) as server:
        anna, ben = ({"Authorization": f"Bearer {letter * 16}"} for letter in "ab")
        body = {"input": SHORT, "response_format": "pcm", **ONE}
        statuses = [
            server.http.post("/v1/audio/speech", json=body, headers=anna).status_code for _ in range(3)
        ]
        answer = server.http.post("/v1/audio/speech", json=body, headers=anna)
        assert statuses == [200, 200, 429] and 55 <= int(answer.headers["retry-after"]) <= 60
        assert server.http.post("/v1/audio/speech", json=body, headers=ben).status_code == 200


@pytest.mark.parametrize(
    ("client", "status"),
    [
        (("127.0.0.1", 5), 200),
        (("::1", 5), 200),
        (("10.1.2.3", 5), 403),
        (("localhost.example", 5), 403),
        (None, 403),
    ],
)
def test_a_server_for_its_own_machine_believes_no_header(client: tuple[str, int] | None, status: int) -> None:
    app = make_app(Service(FakeEngine(), Tokenizer(TOKENIZER)), hosts={"localhost"}, local=True)
    answers: list[Any] = []

    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            answers.append(message)

        scope = {
            "type": "http", "method": "GET", "path": "/healthz", "raw_path": b"/healthz", "query_string": b"", "root_path": "",
            "headers": [(b"host", b"localhost:8000")], "client": client, "server": ("10.1.2.3", 8000), "scheme": "http",
        }  # fmt: skip
        await app(scope, receive, send)

    asyncio.run(ask())
    assert answers[0]["status"] == status
