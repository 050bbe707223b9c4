"""Ray Serve on this machine, with a cluster of the test's own, deployed as a config file deploys it."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from typing import Any

import httpx
import psutil

from support import free_port, small

NAME = "megacontext"


class RayCluster:
    """``replicas`` servers of one Redis behind one address, deployed by a config, as ``serve deploy`` does it."""

    def __init__(self, model: Any, store: str, replicas: int, **others: object) -> None:
        import ray
        from ray import serve

        from server import on_ray  # sets what Ray reads when it starts

        assert on_ray.NAME == NAME
        self._ray, self._serve = ray, serve
        self._settings = {
            name: str(value) if name == "model" else value for name, value in small(model, store, **others).items()
        }
        # Sockets' paths are short.
        self._folder = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp")
        self.port, self._replicas = free_port(), replicas
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> RayCluster:
        self._ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 << 20,
            _temp_dir=self._folder.name,
            log_to_driver=False,
        )
        try:
            self._serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})
            self.scale(self._replicas)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._serve.shutdown()
        self._ray.shutdown()
        self._folder.cleanup()

    def scale(self, replicas: int, wait: bool = True) -> None:
        """Deploy the same with so many replicas."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        self._replicas = replicas
        deployment = {"name": NAME, "num_replicas": replicas}
        application = {
            "name": NAME,
            "import_path": "server.on_ray:from_config",
            "args": self._settings,
            "deployments": [deployment],
        }
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
        if wait:
            self.settle()

    def settle(self, seconds: float = 120) -> None:
        """Until as many run as were asked for, and they answer."""
        end = time.monotonic() + seconds
        while not self._settled():
            assert time.monotonic() < end, self._serve.status()
            time.sleep(0.5)

    def _settled(self) -> bool:
        status = self._serve.status().applications.get(NAME)
        if status is None or status.status != "RUNNING" or not status.deployments:
            return False
        states = status.deployments[NAME].replica_states
        if states != {"RUNNING": self._replicas}:
            return False
        try:
            return httpx.get(f"{self.address}/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def replicas(self) -> list[psutil.Process]:
        """Processes of this cluster that serve."""
        mine = psutil.Process().children(recursive=True)
        return [one for one in mine if f"ServeReplica:{NAME}" in " ".join(one.cmdline())]

    def kill_one(self) -> None:
        """kill -9 of a replica."""
        os.kill(self.replicas()[0].pid, signal.SIGKILL)
