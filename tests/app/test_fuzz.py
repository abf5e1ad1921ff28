"""Thousands of requests that no browser makes: none hangs, none shows a trace of the machine, none leaves a file."""

import json
import time
from typing import Any

import pytest
from app.conftest import Running
from app.test_security import client_of, gate_of, temporary_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

httpx = pytest.importorskip("httpx2", reason="needs the extra app: pip install 'vitrail[app]'")

PATHS = (
    "/",
    "/ask",
    "/login",
    "/static/page.js",
    "/static/page.css",
    "/static/x",
    "/logout",
    "/favicon.ico",
    "/file=x",
)
ACTIONS = ("arrive", "upload", "example", "guide", "choose", "change", "draw", "download", "stop", "leave", "steal")
names = st.sampled_from(
    ("path", "url", "index", "name", "kind", "row", "col", "back", "example", "view", "budget", "model", "resolution")
)
words = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ("/etc/passwd", "http://127.0.0.1:1/x", "view=map&example=pair", "data:,", "png", "../x", "\0", "1" * 400)
    ),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(0, 60), st.floats(), words)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
bodies = st.fixed_dictionaries(
    {"do": st.sampled_from(ACTIONS) | scalars, "tab": st.sampled_from(("tab1", "a.b", "../x", "")) | scalars},
    optional={"link": words | values, "given": st.dictionaries(names, scalars, max_size=4) | values, "name": values},
)
jsons = (bodies | values).map(lambda body: json.dumps(body).encode())
raw = st.one_of(
    jsons,
    st.tuples(jsons, words, st.binary(max_size=200)).map(lambda parts: multipart(*parts)),
    st.binary(max_size=200),
    st.sampled_from((b"[" * 5000, b'{"do":' * 500, b"\xff\xfe", b"NaN", b"9" * 5000, b"--x\r\n", b"--x--")),
)


def multipart(question: bytes, name: str, content: bytes) -> bytes:
    disposition = b'--x\r\nContent-Disposition: form-data; name="'
    file = b'file"; filename="' + name.encode("utf-8", "replace") + b'"\r\n\r\n' + content
    return disposition + b'question"\r\n\r\n' + question + b"\r\n" + disposition + file + b"\r\n--x--\r\n"


header = st.one_of(
    st.tuples(st.just("cookie"), st.sampled_from(("vitrail-7860=a.b", "vitrail=;;;", "x" * 3000))),
    st.tuples(st.just("origin"), st.sampled_from(("null", "http://[", "http://evil.example", "http://127.0.0.1:7860"))),
    st.tuples(st.just("host"), st.sampled_from(("localhost", "evil.example", "[::1", "[::1]:x", "::", "127.0.0.1:x"))),
    st.tuples(st.just("x-forwarded-host"), st.sampled_from(("evil.example", "a\tb"))),
    st.tuples(st.just("content-type"), st.sampled_from(("multipart/form-data; boundary=x", "x/y"))),
    st.tuples(st.sampled_from(("range", "accept", "accept-encoding", "content-encoding", "expect")),
              st.sampled_from(("bytes=0-", "text/html", "br", "gzip", "100-continue"))),
)  # fmt: skip
requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(("GET", "POST", "POST", "POST", "HEAD", "PUT", "OPTIONS", "X")),
        "path": st.sampled_from(PATHS)
        | st.just("/ask")
        | st.tuples(st.sampled_from(PATHS), st.text(alphabet="/.%2e0abc\\:;=é", max_size=12)).map("".join),
        "query": st.dictionaries(st.sampled_from(("token", "view", "page")), words, max_size=2),
        "headers": st.lists(header, max_size=3).map(dict),
        "body": raw,
    }
)
KNOWN_FAULTS = (429, 503)


def send(client: Any, one: dict[str, Any]) -> Any:
    query = {name: word.encode("utf-8", "replace") for name, word in one["query"].items()}
    return client.request(
        one["method"], one["path"].replace("?", ""), params=query, content=one["body"], headers=one["headers"]
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(one=requests, known=st.booleans())
def test_the_gate_bears_any_request(one, known):
    """Only what the page asks comes through, from somebody known, and with words of the right kinds."""
    gate, echo = gate_of()
    client = client_of(gate)
    if known:
        client.get("/")
    answer = send(client, one)
    assert answer.status_code < 500
    assert "Traceback" not in answer.text
    for name, visitor, *rest in echo.asked:
        assert known
        assert name in ACTIONS
        assert visitor.endswith(".tab1") or visitor.rpartition(".")[2].isalnum()
        assert all(isinstance(one, str) for one in rest[:1])


def _fuzz(running: Running, examples: int) -> None:
    before = temporary_files(running)
    with httpx.Client(base_url=running.address, timeout=10) as client:
        client.get("/")

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(one=requests)
        def bears(one):
            began = time.monotonic()
            try:
                answer = send(client, one)
            except (httpx.RemoteProtocolError, httpx.LocalProtocolError, httpx.InvalidURL, httpx.WriteError):
                return  # not HTTP, or cut off
            assert answer.status_code < 500 or answer.status_code in KNOWN_FAULTS
            assert "Traceback" not in answer.text
            assert "site-packages" not in answer.text
            assert time.monotonic() - began < 8

        bears()
        assert httpx.get(running.address, timeout=10).status_code == 200
    time.sleep(0.5)
    said = "".join(running.said)
    assert "Traceback" not in said, said[-3000:]
    assert temporary_files(running) == before


def test_the_page_bears_any_request(page_server):
    _fuzz(page_server, 80)


@pytest.mark.slow
def test_the_page_bears_many_more(page_server):
    _fuzz(page_server, 1500)
