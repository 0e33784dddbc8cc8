"""The peers, each configured as one would for the job it is measured at, on one core.

None is needed: a row whose peer is missing says so. ``bench/peers`` installs them from Debian packages.
"""

import subprocess
from pathlib import Path
from typing import ClassVar

from bench.process import Server, program


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "?"


class Peer(Server):
    """A server that Debian packages."""

    executable: ClassVar[str]

    @classmethod
    def missing(cls) -> str:
        return "" if program(cls.executable) else "peer not installed: make bench-peers"

    @classmethod
    def _path(cls) -> str:
        return program(cls.executable) or cls.executable


class Nginx(Peer):
    """nginx as a file server: ``www/`` in its folder, one worker, open files cached, no access log."""

    name = "nginx"
    executable = "nginx"
    modules: ClassVar[str] = ""
    locations: ClassVar[str] = ""

    @classmethod
    def version(cls) -> str:
        return _first_line(cls._path(), "-v").removeprefix("nginx version: ").replace("/", " ")

    @property
    def www(self) -> Path:
        """Where the files that it serves lie."""
        return self.folder / "www"

    def command(self) -> list[str]:
        self.www.mkdir(exist_ok=True)
        (self.folder / "nginx.conf").write_text(f"""
{self.modules}
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
pid nginx.pid;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  open_file_cache max=100;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  client_body_temp_path body;
  server {{
    listen 127.0.0.1:{self.port} backlog=4096;
    root www;
    {self.locations}
  }}
}}
""")
        return [self._path(), "-p", str(self.folder), "-c", "nginx.conf", "-e", "stderr"]


class Nchan(Nginx):
    """Nchan in nginx: publish/subscribe in memory, to SSE, keeping the last 100 messages for 10 s."""

    name = "Nchan"
    module_paths: ClassVar[list[Path]] = [
        Path(lib, "nginx/modules/ngx_nchan_module.so") for lib in ("/usr/lib", "/usr/lib64")
    ]
    modules = "".join(f"load_module {path};" for path in module_paths if path.exists())
    locations = """
    location = /pub/t { nchan_publisher; nchan_channel_id t; nchan_message_buffer_length 100;
                        nchan_message_timeout 10s; }
    location = /sub/t { nchan_subscriber eventsource; nchan_channel_id t;
                        nchan_subscriber_first_message newest; }
"""

    @classmethod
    def missing(cls) -> str:
        return super().missing() or ("" if cls.modules else "peer not installed: make bench-peers")

    @classmethod
    def version(cls) -> str:
        package = _first_line("dpkg-query", "-W", "-f=${Version}", "libnginx-mod-nchan")
        return f"Nchan {package if package[:1].isdigit() else ''} in {super().version()}"


class Redis(Peer):
    """Redis for publish/subscribe: nothing is stored."""

    name = "Redis"
    executable = "redis-server"
    scheme = "redis"
    fan_out = ("redis", "-", "-")
    storage: ClassVar[list[str]] = ["--appendonly", "no"]

    @classmethod
    def version(cls) -> str:
        words = _first_line(cls._path(), "--version").split()
        return "Redis " + next((word[2:] for word in words if word.startswith("v=")), "?")

    def command(self) -> list[str]:
        return [
            self._path(), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder),
            "--save", "", "--maxclients", "16000", "--tcp-backlog", "4096", *self.storage,
        ]  # fmt: skip


class RedisDurable(Redis):
    """Redis with its append-only file flushed to disk before every reply, for XADD."""

    name = "Redis appendfsync always"
    storage: ClassVar[list[str]] = ["--appendonly", "yes", "--appendfsync", "always"]


class Nats(Peer):
    """Core NATS: publish/subscribe in memory, publishers get no acknowledgement."""

    name = "NATS"
    executable = "nats-server"
    scheme = "nats"
    fan_out = ("nats", "-", "-")

    @classmethod
    def version(cls) -> str:
        return "NATS " + _first_line(cls._path(), "--version").rpartition("v")[2]

    def command(self) -> list[str]:
        return [self._path(), "--addr", "127.0.0.1", "--port", str(self.port)]
