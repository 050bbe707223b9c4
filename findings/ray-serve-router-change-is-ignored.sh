#!/bin/sh
# ray 2.60.0, Ray Serve: an application that runs is deployed again under its name with another request_router_config. serve.run
# succeeds, but the proxy goes on with the router that it has: requests of one session, which ConsistentHashRouter would send to one
# replica, go on to all of them. Under a new application name the router counts. Nothing is said. Fails if that changes. Seen on
# Python 3.11.
#
# What it printed:
#   default router: 2 replicas answer one session
#   ConsistentHashRouter, same name: 2 replicas answer one session
#   ConsistentHashRouter, new name: 1 replicas answer one session
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "ray[serve]==2.60.0"
cat >"$folder/router.py" <<'PY'
import os
import socket
import urllib.request

import ray
from ray import serve

ROUTER = {"request_router_class": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"}
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]


class Who:
    def __call__(self, request) -> str:
        return str(os.getpid())


def answering(name: str, **options) -> int:
    deployment = serve.deployment(Who, num_replicas=2, ray_actor_options={"num_cpus": 0}, **options)
    serve.run(deployment.bind(), name=name, route_prefix=f"/{name}")
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{name}", headers={"x-session-id": "one"})
    return len({urllib.request.urlopen(request, timeout=60).read() for _ in range(40)})


ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
before = answering("app")
same = answering("app", request_router_config=ROUTER)
new = answering("other", request_router_config=ROUTER)
print(f"default router: {before} replicas answer one session")
print(f"ConsistentHashRouter, same name: {same} replicas answer one session")
print(f"ConsistentHashRouter, new name: {new} replicas answer one session")
serve.shutdown()
ray.shutdown()
assert before == 2, "two replicas answer where nothing keeps a session at one"
assert same == 2, "changed: the router of an application that runs is changed with it"
assert new == 1, "the router keeps a session at one replica"
PY
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" "$folder/router.py" 2>/dev/null
