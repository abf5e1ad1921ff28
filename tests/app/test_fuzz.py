"""Thousands of requests that no browser makes: none hangs, none shows a trace of the machine, none leaves a file."""

import json
import time
from typing import Any

import pytest
from app.conftest import Running
from app.test_security import CALL, FILE, JOIN, client_of, gate_of, question, temporary_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

httpx = pytest.importorskip("httpx", reason="needs the extra app: pip install 'vitrail[app]'")

PATHS = (
    "/", "/config", JOIN, CALL, "/login", "/assets/x", "/static/x", "/theme.css", "/gradio_api/queue/data",
    "/favicon.ico", "/gradio_api/heartbeat/x", "/gradio_api/reset", "/gradio_api/cancel", "/gradio_api/upload",
    "/gradio_api/file=x", "/gradio_api/call/arrive", "/gradio_api/info", "/gradio_api/app_id", "/logout",
    "/gradio_api/component_server",
)  # fmt: skip
names = st.sampled_from(("path", "url", "meta", "name", "content", "row", "col", "size", "example", "_type"))
words = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ("/etc/passwd", "http://127.0.0.1:1/x", "view=map&example=pair", "data:,", "png", "../x", "\0", "1" * 400)
    ),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(0, 60), st.floats(), words)
values = st.recursive(
    scalars | st.just({"path": "/etc/passwd", "meta": FILE}),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
bodies = st.fixed_dictionaries(
    {"data": st.lists(values, max_size=3) | values},
    optional={
        "fn_index": st.integers(-1, 70) | scalars,
        "session_hash": st.sampled_from(("tab1", "a.b", "../x", "")) | scalars,
        "event_data": values,
        "trigger_id": scalars,
        "event_id": scalars,
        "api_name": scalars,
        "request": values,
    },
)
raw = st.one_of(
    bodies.map(lambda body: json.dumps(body).encode()),
    values.map(lambda body: json.dumps(body).encode()),
    st.binary(max_size=200),
    st.sampled_from((b"[" * 5000, b'{"data":' * 500, b"\xff\xfe", b"NaN", b"9" * 5000)),
)
header = st.one_of(
    st.tuples(st.just("cookie"), st.sampled_from(("vitrail-7860=a.b", "vitrail=;;;", "x" * 3000))),
    st.tuples(st.just("origin"), st.sampled_from(("null", "http://[", "http://evil.example", "http://127.0.0.1:7860"))),
    st.tuples(st.just("host"), st.sampled_from(("localhost", "evil.example", "[::1", "[::1]:x", "::", "127.0.0.1:x"))),
    st.tuples(st.just("x-forwarded-host"), st.sampled_from(("evil.example", "a\tb"))),
    st.tuples(st.just("content-type"), st.sampled_from(("multipart/form-data; boundary=x", "x/y"))),
    st.tuples(st.sampled_from(("range", "accept", "accept-encoding", "x-gradio-user", "content-encoding", "expect")),
              st.sampled_from(("bytes=0-", "text/html", "br", "app", "gzip", "100-continue"))),
)  # fmt: skip
requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(("GET", "POST", "POST", "POST", "HEAD", "PUT", "OPTIONS", "X")),
        "path": st.sampled_from(PATHS)
        | st.sampled_from((JOIN, CALL))
        | st.tuples(st.sampled_from(PATHS), st.text(alphabet="/.%2e0abc\\:;=é", max_size=12)).map("".join),
        "query": st.dictionaries(
            st.sampled_from(("token", "session_hash", "view", "deep_link", "page", "__theme")), words, max_size=2
        ),
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
    """Only what the page sends comes through, and that is harmless."""
    gate, echo = gate_of()
    client = client_of(gate)
    if known:
        client.get("/")
        echo.asked.clear()
    answer = send(client, one)
    assert answer.status_code < 500
    assert "Traceback" not in answer.text
    for path, _, body in echo.asked:
        assert ".." not in path.split("/")
        if path in (JOIN, CALL):
            assert known
            told = json.loads(body)
            assert b"gradio.FileData" not in body
            assert isinstance(told["data"], list)
            assert set(told) <= {*question(), "trigger_id", "event_data"}


def _fuzz(running: Running, examples: int) -> None:
    before = temporary_files(running)
    with httpx.Client(base_url=running.address, timeout=10) as client:
        client.get("/")

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(one=requests)
        def bears(one):
            if one["path"].startswith(("/gradio_api/heartbeat", "/gradio_api/queue/data")) and one["method"] == "GET":
                return  # a stream: it stays open as it should
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
