#!/bin/sh
# FastAPI 0.165.0: request.scope["route"].path, which logs, metrics and access rules take for a request's route, lacks the
# prefix with which its router was included: a router included under /v1/things says "/{id}/parts" for a request to
# /v1/things/7/parts. A prefix of the router's own, and the path of the OpenAPI document, are whole. So two routes of
# different routers get one label, and a check like path.startswith("/v1/") passes them over without a word. Up to 0.115
# include_router copied the routes, with their whole path. Fails if that changes. Seen on Python 3.11.
#
# What it printed:
#   fastapi 0.115.0: /v1/things/{id}/parts
#   fastapi 0.165.0: /{id}/parts
#   its OpenAPI document: /v1/things/{id}/parts
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/app.py" <<'PY'
import sys

from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient

inner, outer, app = APIRouter(), APIRouter(prefix="/v1/things"), FastAPI()


@inner.get("/{id}/parts")
def parts(id: str, request: Request) -> str:
    return request.scope["route"].path


outer.include_router(inner)
app.include_router(outer)
print(TestClient(app).get("/v1/things/7/parts").json())
print(next(iter(app.openapi()["paths"])), file=sys.stderr)
PY
route() {
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install -q --disable-pip-version-check "fastapi==$1" httpx==0.28.1 ${2-} 2> /dev/null
    "$folder/$1/bin/python" "$folder/app.py" 2> "$folder/openapi"
}
old=$(route 0.115.0)
new=$(route 0.165.0 httpx2)
told=$(tail -n 1 "$folder/openapi")
echo "fastapi 0.115.0: $old"
echo "fastapi 0.165.0: $new"
echo "its OpenAPI document: $told"
[ "$old" = "/v1/things/{id}/parts" ] && [ "$new" = "/{id}/parts" ] && [ "$told" = "/v1/things/{id}/parts" ]
