"""Several servers of one store on Ray Serve, which is the extra ``ray``: each replica is a whole server.

Ray starts, watches, scales and drains them; its proxies tell the route of a request (``server/affinity.py``) and send
it to the replica that has that route. What goes astray is handed over (``server/sessions/lease_keeper.py``).
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import torch

from mc_core.errors import ConfigError
from server.affinity import ROUTE
from server.settings import Settings

os.environ.setdefault("RAY_SERVE_SESSION_ID_HEADER_KEY", ROUTE)
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "server.affinity:middlewares")
# By default Ray runs its processes at nice 15, which is for batches: a busy neighbour would starve replicas and proxy.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray tells its makers how it is used, unless it is told not to.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray import serve
except ImportError as error:
    raise ConfigError("--ray needs the extra: pip install 'megacontext[ray]'") from error

logger = logging.getLogger(__name__)
NAME = "megacontext"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
ONGOING = 4096
"""Requests at one replica from which on others get them. Far above what a replica lets in, which answers 429 itself: to
spill a session to another replica costs more than to wait."""
OBJECT_STORE = 256 << 20
"""Bytes of shared memory for what processes of one machine hand over: bodies on their way, and nothing that stays."""
LAST_WORDS = 15
"""Seconds beyond ``drain_seconds`` for answers to leave and sessions to be handed over."""


class Replica:
    """One server, in a process of its own."""

    app: Any

    async def check_health(self) -> None:
        """Raises where the engine has stopped: Ray then starts another replica in its place."""
        if not self.app.state.server.engine.alive:
            raise RuntimeError("the engine has stopped")


def application(settings: Settings, replicas: int = 1) -> serve.Application:
    """What Ray Serve runs; ``settings`` are those of every replica, but for its name.

    ConfigError for settings that do not fit several servers.
    """
    if not settings.store.startswith(("redis://", "rediss://")):
        raise ConfigError("store: several replicas need a Redis: redis://HOST:PORT/DB")

    def app() -> Any:
        from server.app import build_app
        from server.logs import configure_logs
        from server.memory import settle_allocator

        configure_logs()
        settle_allocator()
        name = serve.get_replica_context().replica_id.unique_id
        return build_app(settings.model_copy(update={"server_name": name}))

    gpu = settings.device.startswith("cuda") or (settings.device == "auto" and torch.cuda.is_available())
    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 0, "num_gpus": int(gpu)},
        max_ongoing_requests=ONGOING,
        graceful_shutdown_timeout_s=settings.drain_seconds + LAST_WORDS,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        health_check_timeout_s=30,
        request_router_config={"request_router_class": ROUTER},
    )
    return deployment(serve.ingress(app)(Replica)).bind()


def from_config(args: dict[str, Any]) -> serve.Application:
    """The same for a Serve config, whose ``args`` are settings by name; others come from the environment."""
    return application(Settings(**args))


def run_replicas(settings: Settings, replicas: int) -> None:
    """Serve with so many replicas on this machine until SIGTERM or SIGINT."""
    if settings.unix_socket is not None:
        raise ConfigError("unix_socket: Ray Serve listens on host and port")
    served = application(settings, replicas)
    ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": settings.host,
                "port": settings.port,
                "keep_alive_timeout_s": settings.idle_connection_seconds,
                "ssl_certfile": settings.tls_cert and str(settings.tls_cert),
                "ssl_keyfile": settings.tls_key and str(settings.tls_key),
            },
        )
        serve.run(served, name=NAME)
        signal.pause()
    except KeyboardInterrupt:
        logger.info("stopping the replicas")
    except RuntimeError as error:
        raise ConfigError("the replicas did not start; why, their log says above") from error
    finally:
        serve.shutdown()
        ray.shutdown()
