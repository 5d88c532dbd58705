"""What is said to the Ray application, before there is any Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tortoise_rt.errors import InputError, MissingDependency
from tortoise_rt.serving.ray_options import parse

KEY = "a-key-of-sixteen-or-more"


def test_a_command_line_and_a_file_say_the_same(folder: Path) -> None:
    Path("keys").write_text(f"me {KEY}\n")
    texts = {
        "engine": "/models/mine", "replicas": "1:8", "gpus": "1", "cpus": "0.5", "rows": "32", "strict": "true",
        "queue": "64", "per_key": "8", "timeout": "30", "max-upload": "2", "api-keys": "keys", "drain": "5",
        "allow-origin": "https://example.org", "device": "cuda",
    }  # fmt: skip
    typed = {
        **texts, "gpus": 1, "cpus": 0.5, "rows": 32, "strict": True, "queue": 64, "per_key": 8, "timeout": 30.0,
        "allow-origin": ["https://example.org"], "drain": 5,
    }  # fmt: skip
    for given in (texts, typed):
        found = parse(given)
        assert (found.replicas, found.gpus, found.cpus, found.drain) == ((1, 8), 1.0, 0.5, 5.0)
        assert (found.engine.engine, found.engine.device) == (Path("/models/mine"), "cuda")
        assert (found.engine.rows, found.engine.strict, found.engine.backend) == (32, True, "auto")
        limits = found.front.limits
        assert (limits.queue, limits.each, limits.timeout, limits.upload_bytes) == (64, 8, 30.0, 2 << 20)
        assert found.front.keys is not None and found.front.keys.name_of(KEY) == "me"
        assert found.front.origins == ("https://example.org",)


def test_without_any_it_is_as_serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse({})
    assert (found.replicas, found.gpus, found.cpus, found.drain) == ((1, 1), 0.0, 1.0, 120.0)
    assert (found.engine.engine, found.engine.rows, found.engine.strict) == (None, 16, False)
    assert found.front.keys is None and found.front.limits.queue == 32
    many = parse({"replicas": "1:8", "device": "cuda:0,cuda:1", "queue": 300})
    assert many.engine.at_once == 32 and (many.front.limits.queue, many.front.limits.each) == (300, 512)
    assert parse({"replicas": 1000}).front.limits.queue == 1024
    assert parse({"strict": False, "replicas": 3}).replicas == (3, 3)
    Path("keys").write_text(f"me {KEY}\n")
    monkeypatch.setenv("TORTOISE_RT_API_KEYS", "keys")
    assert parse({}).front.keys is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"egine": "x"}, 'Did you mean "engine"'),
        ({"jobs": "x"}, "jobs is not for Ray: jobs are kept by one process"),
        ({"port": 1}, "port is not for Ray: Ray's proxy listens"),
        ({"replicas": "0"}, "replicas is '0'"),
        ({"replicas": "4:2"}, "as 1:8"),
        ({"replicas": "many"}, "replicas is 'many'"),
        ({"rows": "x"}, "'x' is not a valid integer"),
        ({"rows": 0}, "rows is 0"),
        ({"gpus": -1}, "gpus is -1"),
        ({"queue": 0}, "queue is 0"),
        ({"strict": "perhaps"}, "strict is 'perhaps'"),
        ({"api_keys": "none"}, "cannot read the keys in none"),
        ({"voices_dir": "none"}, "does not exist"),
        ({"allow-origin": "example.org"}, "must be a scheme and a host"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(given)
    assert message in str(caught.value)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install 'tortoise-rt\[serve,ray\]'"):
        import tortoise_rt.serving.ray_app  # noqa: F401
