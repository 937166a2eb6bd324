"""The page's files, and what the server says around them."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import status_views
from page_server import PageServer, serving

from fdmoe_watchdog.status_page import files

FILES = files.load()
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with serving(status_views.live(status_views.tree())) as server:
        yield server


def ask(server: PageServer, method: str, path: str, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = Answer(answer.status, dict(answer.headers), answer.read())
    connection.close()
    return found


def test_the_page_is_a_few_files() -> None:
    assert sorted(FILES) == [
        "/", "/page/decisions.js", "/page/devices.js", "/page/elements.js", "/page/gpus.js", "/page/heat.js",
        "/page/icon.svg", "/page/numbers.js", "/page/page.css", "/page/page.js", "/page/sparkline.js",
        "/page/stream.js", "/page/traffic.js",
    ]  # fmt: skip
    assert sum(len(file.body) for file in FILES.values()) < 64_000


@pytest.mark.parametrize("path", FILES)
def test_nothing_comes_from_elsewhere_and_nothing_becomes_markup(path: str) -> None:
    text = FILES[path].body.decode()
    # the name of SVG's elements is an address that nobody asks
    assert set(re.findall(r"\w+://[^\"'\s]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "//" not in "".join(re.findall(r"(?:src|href)=\"([^\"]*)\"", text))
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "import("):
        assert way not in text
    # inline, which the policy forbids
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=\"|javascript:", text)


def test_every_file_that_is_asked_for_exists() -> None:
    asked = set(re.findall(r"(?:src|href)=\"(page/[^\"]+)\"", FILES["/"].body.decode()))
    for path, file in FILES.items():
        if path.endswith(".js"):
            asked |= {f"page/{name}" for name in re.findall(r"from \"\./([\w.]+)\"", file.body.decode())}
    assert {f"/{path}" for path in asked} == set(FILES) - {"/"}


@pytest.mark.parametrize("path", FILES)
def test_files_are_served_with_their_kind_and_asked_for_anew(server: PageServer, path: str) -> None:
    answer = ask(server, "GET", path)
    assert (answer.status, answer.body) == (200, FILES[path].body)
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "/": "text/html"}
    assert answer.headers["Content-Type"].partition(";")[0] == kinds[path.rpartition(".")[2]]
    assert answer.headers["Cache-Control"] == "no-cache"
    again = ask(server, "GET", path, **{"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert ask(server, "GET", path, **{"If-None-Match": '"old"'}).status == 200


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/status", "/livez", "/metrics", "/nowhere"])
def test_every_answer_says_what_a_browser_may_do_with_it(server: PageServer, path: str) -> None:
    headers = ask(server, "GET", path).headers
    assert headers["Content-Security-Policy"] == POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/page/page.css", "/status", "/livez", "/metrics"])
def test_head_says_what_get_would_and_sends_nothing(server: PageServer, path: str) -> None:
    head, get = ask(server, "HEAD", path), ask(server, "GET", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert head.headers["Content-Length"] == str(len(get.body))


def test_head_of_the_stream_asks_for_no_stream(server: PageServer) -> None:
    head = ask(server, "HEAD", "/events")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/events", "/status", "/livez", "/nowhere"])
def test_other_methods_are_refused(server: PageServer, path: str) -> None:
    answer = ask(server, "POST", path)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.body == b"the method is POST; GET and HEAD are allowed\n"


@pytest.mark.parametrize("path", ["/nowhere", "/page/", "/page/../http.py", "/page/page.py", "/index.html"])
def test_unknown_paths_say_what_is_there(server: PageServer, path: str) -> None:
    answer = ask(server, "GET", path)
    assert answer.status == 404
    assert answer.body == f"{path}: /, /events, /metrics, /livez and /status are here\n".encode()
