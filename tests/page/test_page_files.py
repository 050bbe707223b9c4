"""The page as it is sent: without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.page.files import FOLDER, page
from support import running, settings_for

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
NAMED = re.compile(r'(?:href|src)="([^"#]+)"')
IMPORTED = re.compile(r'^(?:import|export)\b[^;"]*\bfrom "([^"]+)"', re.MULTILINE)
NAMESPACES = {"http://www.w3.org/2000/svg"}


@pytest.fixture(scope="module")
def address(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(settings_for(model_dir, tmp_path_factory.mktemp("store") / "s.sqlite", api_key=["secret"])) as address:
        yield address


def test_a_browser_gets_the_page_and_a_program_what_it_always_got(address: str) -> None:
    """Law: / asks for no key, and is a page only for who asks for HTML."""
    shown = httpx.get(address, headers=BROWSER)
    assert shown.status_code == 200
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert "<!doctype html>" in shown.text
    for accept in ("application/json", "*/*"):
        assert httpx.get(address, headers={"Accept": accept}).json()["object"] == "server"
    assert {httpx.get(address, headers={"Accept": one}).headers["vary"] for one in ("*/*", "text/html")} == {"Accept"}


def test_nothing_but_its_own_files_may_run(address: str) -> None:
    """Law: each file of the page comes with a policy that allows no inline code and no other server."""
    for path in ("", *parts(address)):
        headers = httpx.get(f"{address}/{path}", headers=BROWSER).headers
        policy = dict(one.split(" ", 1) for one in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert policy["img-src"] == "'self' data:"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_parts_stay_for_good_and_the_page_is_asked_for_anew(address: str) -> None:
    """Law: an address with the version in it may be kept for ever; the page by its tag alone."""
    shown = httpx.get(address, headers=BROWSER)
    assert shown.headers["cache-control"] == "no-cache"
    again = httpx.get(address, headers={**BROWSER, "If-None-Match": shown.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path in parts(address):
        kept = httpx.get(f"{address}/{path}")
        assert kept.status_code == 200
        assert "immutable" in kept.headers["cache-control"]
        assert httpx.get(f"{address}/{path}", headers={"If-None-Match": kept.headers["etag"]}).status_code == 304
    other = httpx.get(f"{address}/page/older/js/main.js")
    assert (other.status_code, other.headers["cache-control"]) == (200, "no-cache")
    assert httpx.get(f"{address}/page/{page().version}/../routes.py").status_code == 404


def test_every_file_is_there_and_none_is_asked_of_anybody_else() -> None:
    """Law: the page names its own files alone, each of which exists, and each of which is used."""
    files = page().files
    used = {name.removeprefix("page/@/") for name in NAMED.findall(files["index.html"].body.decode())} | {"index.html"}
    for name, file in files.items():
        text = file.body.decode()
        assert set(re.findall(r"https?://[^\s\"'`)\\\]]+", text)) <= NAMESPACES, name
        assert not re.search(r"@import|url\(|innerHTML|\beval\(|<style|style=\"|\son\w+=\"", text), name
        for target in IMPORTED.findall(text):
            found = (FOLDER / name).parent.joinpath(target).resolve().relative_to(FOLDER).as_posix()
            assert found in files, f"{name} imports {target}"
            used.add(found)
    assert used == set(files)


def test_no_page(model_dir: Path, tmp_path: Path) -> None:
    """Law: with --no-page a browser is answered as a program is, and there are no files."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite", page=False)) as address:
        assert httpx.get(address, headers=BROWSER).json()["object"] == "server"
        assert httpx.get(f"{address}/page/{page().version}/js/main.js").status_code == 404


def test_behind_a_root_path(model_dir: Path, tmp_path: Path) -> None:
    """Law: behind a proxy's path the page names its files below that path, with or without a slash at its end."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite", root_path="/mega")) as address:
        for path in ("/", "/mega", "/mega/"):
            names = NAMED.findall(httpx.get(address + path, headers=BROWSER).text)
            assert names
            for name in names:
                assert name.startswith(f"/mega/page/{page().version}/")
                assert httpx.get(address + name).status_code == 200
                assert httpx.get(address + name.removeprefix("/mega")).status_code == 200
    assert all(name.startswith("page/") for name in NAMED.findall(page().index("").body.decode()))


def parts(address: str) -> list[str]:
    """What the page names."""
    return NAMED.findall(httpx.get(address, headers=BROWSER).text)
