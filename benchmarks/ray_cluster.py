"""The two services that ``ray_service.py`` compares: a plain server, and the application on a local Ray."""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

PATIENCE = 120.0  #: seconds for an answer, and for replicas to come
CPUS = 8  #: that Ray is told of, more or less than there are


@contextlib.contextmanager
def plain(options: argparse.Namespace) -> Iterator[str]:
    """The address of a plain server."""
    command = [sys.executable, "-m", "tortoise_rt", "serve", "--port", "0", *(["--strict"] * options.strict)]
    command += [] if options.engine is None else ["--engine", str(options.engine)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        url = next(found[1] for line in lines if (found := re.search(r"Listening on (http\S+)", line)))
        next(line for line in lines if '"ready"' in line)
        yield url
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


class Cluster:
    """The application on a local Ray."""

    def __init__(self, options: argparse.Namespace) -> None:
        import ray
        from ray import serve

        self._ray, self._serve = ray, serve
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._options: dict[str, Any] = {
            "replicas": 2,
            "queue": 256,
            "per-key": 256,
            "strict": options.strict,
        }
        if options.engine is not None:
            self._options["engine"] = str(options.engine)
        ray.init(
            num_cpus=CPUS,
            include_dashboard=False,
            object_store_memory=256 << 20,
            log_to_driver=options.log,
            _node_ip_address="127.0.0.1",
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        self.deploy()

    def deploy(self, **others: Any) -> None:
        """Have it run, with some other options; returns when all replicas are new."""
        from tortoise_rt.serving.ray_app import app

        self._serve.run(app({**self._options, **others}), logging_config={"log_level": "WARNING"})

    def anew(self, **others: Any) -> None:
        """The same, but behind an end of what runs."""
        self._serve.delete("default")
        self.deploy(**others)

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of those that run."""
        from ray.serve.context import _get_global_client

        details = self._ray.get(_get_global_client()._controller.get_serve_instance_details.remote())
        found = details["applications"]["default"]["deployments"][deployment]["replicas"]
        return [
            replica["pid"]
            for replica in found
            if str(getattr(replica["state"], "value", replica["state"])) == "RUNNING"
        ]

    def until_there_are(self, count: int, deployment: str, dead: Sequence[int] = ()) -> float:
        """-> seconds waited. Ray takes some seconds to find out who is ``dead``."""
        began = time.monotonic()
        while len([pid for pid in self.replicas(deployment) if pid not in dead]) < count:
            if time.monotonic() > began + PATIENCE:
                raise RuntimeError(f"there are not {count} replicas of {deployment}")
            time.sleep(0.2)
        return time.monotonic() - began

    def close(self) -> None:
        self._serve.shutdown()
        self._ray.shutdown()
