"""The files in runtime/server/deploy: what they pass on the command line, and to Ray, is understood."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from conftest import ROOT

from tortoise_rt.cli import main
from tortoise_rt.serving.ray_options import parse

DEPLOY = ROOT / "runtime" / "server" / "deploy"


def parameters(command: list[str]) -> dict[str, Any]:
    """What ``tortoise-rt`` reads of a command line, without running it."""
    name, serve, *arguments = command
    assert (name, serve) == ("tortoise-rt", "serve")
    return main.commands["serve"].make_context("serve", arguments).params


def test_the_image_starts_a_server_that_others_reach_by_the_port_that_is_said() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    found = parameters(json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0]))
    assert (found["host"], str(found["jobs_folder"])) == ("0.0.0.0", "/data/jobs")
    (port,) = re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE)
    assert found["port"] == int(port) and f"127.0.0.1:{port}/readyz" in text
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001"]
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"]
    assert {name for name in kept if not (ROOT / name).exists()} == set()


def test_the_pod_starts_a_server_with_keys_and_ends_it_in_time() -> None:
    yaml = pytest.importorskip("yaml", reason="needs pip install pyyaml")
    parts = {part["kind"]: part for part in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    found = parameters([*container["command"], *container["args"]])
    assert found["host"] == "0.0.0.0" and found["api_keys"] is not None
    assert found["port"] == container["ports"][0]["containerPort"]
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert found["drain"] + wait < pod["terminationGracePeriodSeconds"]
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (found["jobs_folder"], found["engine"], found["api_keys"]):
        assert any(str(path).startswith(mount) for mount in mounted)
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_ray_is_told_what_it_understands() -> None:
    yaml = pytest.importorskip("yaml", reason="needs pip install pyyaml")
    told = yaml.safe_load((DEPLOY / "ray.yaml").read_text())
    (application,) = told["applications"]
    assert application["import_path"] == "tortoise_rt.serving.ray_app:app"
    found = parse(application["args"])
    assert (found.replicas, found.gpus, str(found.engine.engine)) == ((1, 4), 1, "/model")
    assert told["http_options"]["host"] == "127.0.0.1"
