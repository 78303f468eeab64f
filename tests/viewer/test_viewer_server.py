"""The running server, by raw bytes: what a client library would never send."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from histoloc.errors import InputError
from histoloc.viewer.serve import listen, view

FOLDER = Path(str(files("histoloc.viewer"))) / "static"
STATIC = {file.relative_to(FOLDER).as_posix(): file for file in FOLDER.rglob("*") if file.is_file()}
MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "txt": "text/plain",
}
START = (
    "import sys; from pathlib import Path; from histoloc.viewer.serve import view; view([Path(sys.argv[1])], port=0)"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    folder = tmp_path_factory.mktemp("out")
    (folder / "settings.json").write_text(json.dumps({"weights_sha256": "0", "secret": "the secret of the folder"}))
    log = folder / "console.txt"
    with log.open("w") as console:
        command = [sys.executable, "-c", START, str(folder)]
        process = subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT, env=os.environ)
        try:
            for _ in range(6000):
                if log.read_text().endswith("\n"):
                    break
                time.sleep(0.1)
            yield int(log.read_text().split(":")[2].split("/")[0]), log
        finally:
            process.terminate()
            process.wait(120)


def send(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    return answer


def request(target: bytes, method: bytes = b"GET", host: bytes = b"localhost") -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"


RAW = [
    b"/static/../../../../../../../../etc/passwd",
    b"/../../../../etc/passwd",
    b"//etc/passwd",
    b"/static/../app.py",
    b"/./static/./../app.py",
    b"/settings.json",
    b"/static/settings.json",
    b"/tiles/../settings.json/map/0/0_0",
    b"/tiles/%00/map/0/0_0",
    b"/%ff%fe",
    b"/static/\xc0\xaf",
    b"/static/main.js\x00",
    b"http://localhost/static/../app.py",
    b"file:///etc/passwd",
    b"/" + b"a" * 3000,
    b"/" + b"a" * 100000,
    b"*",
    b"",
]


@pytest.mark.parametrize("target", RAW, ids=range(len(RAW)))
def test_raw_targets_get_4xx(server: tuple[int, Path], target: bytes) -> None:
    port, log = server
    answer = send(port, request(target))
    assert answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert b"root:" not in answer
    assert b"secret" not in answer
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
        request(b"/", b"TRACE"),
        request(b"/", host=b"evil.example"),
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200000 + b"\r\n\r\n",
    ],
    ids=range(7),
)
def test_raw_requests_get_4xx(server: tuple[int, Path], data: bytes) -> None:
    port, log = server
    answer = send(port, data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("body", [b"", b"5 byte", b"x" * 100_000], ids=len)
@pytest.mark.parametrize("target", [b"/", b"/api/list", b"/tiles/a/picture/0/0_0"])
def test_a_head_with_a_body_leaves_no_trace(server: tuple[int, Path], target: bytes, body: bytes) -> None:
    port, log = server
    start = f"Host: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answer = send(port, b"HEAD " + target + b" HTTP/1.1\r\n" + start + body)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 404"))
    assert rest == b""
    assert log.read_text().count("\n") == 1


def test_the_page_is_served_and_the_console_quiet(server: tuple[int, Path]) -> None:
    port, log = server
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for name in ("", *(f"static/{name}" for name in STATIC)):
        connection.request("GET", f"/{name}")
        answer = connection.getresponse()
        assert (answer.status, len(answer.read()) > 0) == (200, True), name
        kind = MEDIA_TYPES[name.rpartition(".")[2] if name else "html"]
        assert (answer.headers["content-type"] or "").partition(";")[0] == kind
        assert answer.headers["cache-control"] == "no-cache"
    assert log.read_text().count("\n") == 1


def test_a_port_in_use_is_said() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: cannot be used on 127.0.0.1"):
            listen("127.0.0.1", port)
    for port in (-1, 65536):
        with pytest.raises(InputError, match="from 1 to 65535"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match="no address of this machine"):
        listen("no such host.invalid", 8000)
    with pytest.raises(InputError, match=r"--host 192\.0\.2\.1: is no address of this machine"):
        listen("192.0.2.1", 0)  # an address for documentation, which no machine has


def test_a_missing_page_server_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"pip install histoloc\[view\]"):
        view([tmp_path])


def test_the_page_works_offline() -> None:
    assert {"index.html", "main.js", "style.css", "openseadragon/openseadragon.min.js"} <= set(STATIC)
    assert "Redistribution" in STATIC["openseadragon/LICENSE.txt"].read_text()
    for name, file in STATIC.items():
        if "openseadragon" not in name and not name.endswith(".svg"):
            content = file.read_bytes()
            assert b"http://" not in content, name
            assert b"https://" not in content, name
            assert b"innerHTML" not in content, name
