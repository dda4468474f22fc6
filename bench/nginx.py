"""nginx: a rival, and the TLS ends that the load generator and the mock do not have. I/O.

It runs with a configuration and a prefix of its own, never as a service.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import urlsplit

from bench.contenders import (
    MOCK_KEY,
    Running,
    Site,
    Unavailable,
    forwarded,
    free_port,
    process,
    wait_answer,
)
from bench.load import Target
from bench.scenarios import Scenario

_CONFIG = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections {files}; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  client_body_buffer_size 1m;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  upstream behind {{
    server {behind};
    keepalive 1024;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096{listen};
    {tls}
    location / {{
      proxy_pass {scheme}://behind;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      {headers}
      proxy_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Front:
    """One nginx: where it listens and how, and what is behind it."""

    port: int
    behind: str
    scheme: str = "http"
    certificate: Path | None = None
    http2: bool = False
    key: str = ""


def program() -> str | None:
    """The nginx of this machine."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def absent() -> str | None:
    """Why nginx cannot be used."""
    return None if program() else "nginx is not installed (on Debian: apt-get install nginx-light)"


def render(front: Front, folder: Path, *, files: int, root: bool) -> str:
    """The configuration. Pure."""
    certificate = front.certificate
    listen = (" ssl" if certificate else "") + (" http2" if front.http2 else "")
    tls = ""
    if certificate:
        tls = f"ssl_certificate {certificate}; ssl_certificate_key {certificate};"
        tls += " http2_max_concurrent_streams 1000;" if front.http2 else ""
    headers = ""
    if front.key:
        headers = f'proxy_set_header api-key {front.key}; proxy_set_header Authorization "";'
    return _CONFIG.format(
        user="user root;" if root else "",
        files=files,
        folder=folder,
        behind=front.behind,
        port=front.port,
        listen=listen,
        tls=tls,
        scheme=front.scheme,
        headers=headers,
    )


@contextmanager
def run(front: Front, site: Site, *, cpus: tuple[int, ...]) -> Iterator[Running]:
    """nginx with this configuration, on these CPUs. Raises Unavailable."""
    found = program()
    if found is None:
        raise Unavailable(absent() or "")
    folder = Path(mkdtemp(prefix="nginx", dir=site.folder))
    config = folder / "nginx.conf"
    config.write_text(render(front, folder, files=16_384, root=os.geteuid() == 0))
    log = folder / "output.log"
    words = [found, "-p", str(folder), "-c", str(config)]
    began = time.monotonic()
    with process(words, cpus=cpus, log=log) as started:
        target = forwarded(front.port, "https" if front.certificate else "http")
        _wait(started, target("echo").url, log=log, site=site)
        yield Running(target, started.pid, time.monotonic() - began)


def _wait(started: subprocess.Popen[bytes], url: str, *, log: Path, site: Site) -> None:
    wait_answer(started, url, log=log, authority=site.authority)


@contextmanager
def tls_front(running: Running, site: Site) -> Iterator[Running]:
    """The same contender called over TLS: nginx, on the load's CPU, encrypts for the generator."""
    front = Front(free_port(), f"127.0.0.1:{running.port()}", scheme="https")
    with run(front, site, cpus=(site.cpus.load,)):

        def target(deployment: str) -> Target:
            called = running.target(deployment)
            parts = urlsplit(called.url)
            url = parts._replace(scheme="http", netloc=f"127.0.0.1:{front.port}").geturl()
            return replace(called, url=url)

        yield replace(running, target=target)


@contextmanager
def tls_upstream(site: Site) -> Iterator[str]:
    """The mock behind TLS, by HTTP/2 for those who ask for it; its origin."""
    front = Front(
        free_port(),
        site.upstream.removeprefix("http://"),
        certificate=site.certificate,
        http2=True,
    )
    with run(front, site, cpus=(site.cpus.mock,)):
        yield f"https://127.0.0.1:{front.port}"


@dataclass(frozen=True, slots=True)
class Nginx:
    """A reverse proxy that only replaces the key: what a compiled proxy costs."""

    name: str = "nginx"

    def absent(self) -> str | None:
        """When it is not installed."""
        return absent()

    @contextmanager
    def start(self, site: Site, scenario: Scenario) -> Iterator[Running]:
        """One worker."""
        behind = site.upstream.removeprefix("http://")
        front = Front(free_port(), behind, key=MOCK_KEY)
        with run(front, site, cpus=site.cpus.contender) as running:
            yield running
