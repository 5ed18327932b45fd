"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """artifacts: folders, the first is the model of requests that name none. models: a folder of such folders.

    keys: any of these lets a client in; none lets everybody. max_batch: sequences at work at once, of each model.
    queue: requests of a model that may wait besides. idle: seconds after which a model that nobody uses is unloaded,
    None for never. grace: seconds that running requests have after SIGTERM. cors: origins whose pages may use the
    server. cache_dir: where prefixes are saved. body_*: what a request's body may take. send_seconds: how long a client
    may leave an answer unread. ping: seconds between comments that keep a silent stream open.
    """

    artifacts: tuple[Path, ...] = ()
    models: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    keys: tuple[str, ...] = ()
    max_batch: int = 16
    queue: int = 64
    context: int | None = None
    idle: float | None = None
    grace: float = 30.0
    cors: tuple[str, ...] = ()
    log_json: bool = False
    cache_dir: Path | None = None
    speculate: str | None = None
    threads: int | None = None
    numa: str = "auto"
    device: str | None = None
    body_limit: int = 16 << 20
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    ping: float = 5.0

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Of a name or an address, without a port."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
