"""Files that clients name by address: only public places are asked, and only so much is taken."""

from __future__ import annotations

import http.server
import socket
import threading

import pytest

from wan_s2v.server import fetch as fetch_module
from wan_s2v.server.fetch import fetch, public_address
from wan_s2v.server.problems import Problem


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        redirects = {
            "/moved": "/file",
            "/inside": "http://10.0.0.1/file",
            "/ring": "/ring",
            "/scheme": "file:///etc/passwd",
        }
        if self.path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.end_headers()
        elif self.path.startswith("/file"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"content" + self.path.partition("?")[2].encode())
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(bytes(1000))
        else:
            self.send_error(404)

    def log_message(self, *_words) -> None:
        pass


@pytest.fixture
def site(monkeypatch):
    """A server on loopback that passes for the public host pages.example; other names resolve as ever."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    resolve, connect = socket.getaddrinfo, socket.create_connection

    def resolved(host, port, *words, **more):
        return resolve("93.184.215.14" if host == "pages.example" else host, port, *words, **more)

    def connected(address, *words, **more):
        assert address[0] == "93.184.215.14", "only the address that was checked may be asked"
        return connect(server.server_address, *words, **more)

    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", resolved)
    monkeypatch.setattr(fetch_module.socket, "create_connection", connected)
    yield "http://pages.example"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "content"), [("/file", b"content"), ("/moved", b"content"), ("/file?x=1", b"contentx=1")]
)
def test_a_public_file_is_fetched(site, tmp_path, path, content):
    fetch(site + path, tmp_path / "image", 1000)
    assert (tmp_path / "image").read_bytes() == content


@pytest.mark.parametrize(
    ("path", "kind", "part"),
    [
        ("/none", "invalid", "answers with status 404"),
        ("/inside", "invalid", "is not a public address"),
        ("/ring", "invalid", "is redirected more than 3 times"),
        ("/scheme", "invalid", "is not a plain http or https address"),
        ("/endless", "too_large", "has more than"),
    ],
)
def test_what_is_not_taken(site, tmp_path, path, kind, part):
    with pytest.raises(Problem, match=part) as refused:
        fetch(site + path, tmp_path / "image", 5000)
    assert refused.value.kind == kind


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://example.com/a",
        "http://user:word@example.com/",
        "http://",
        "//example.com/a",
        "http://example.com/a b",
        "http://example.com/\r\nHost: x",
        "http://[::1/",
        "http://example.com:99999/",
    ],
)
def test_addresses_of_another_form(tmp_path, address):
    with pytest.raises(Problem):
        fetch(address, tmp_path / "image", 1000)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1", "2130706433"),
        *("169.254.169.254", "224.0.0.1", "::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    ],
)
def test_places_that_are_not_public(host):
    with pytest.raises((Problem, OSError)):
        public_address(host, 80)
