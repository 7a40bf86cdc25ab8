"""What crosses from the door to a replica: a request of HTTP as the door has let it in."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
"""Of ASGI: the start of an answer, or a part of its body."""


@dataclass(frozen=True)
class Call:
    """A request with its whole body."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    state: dict[str, Any]
    """What the gate has found: the request's id, its owner, and the seed if it names none."""
    body: bytes

    @classmethod
    def of(cls, scope: MutableMapping[str, Any], body: bytes) -> Call:
        """The request of a scope of ASGI."""
        kept = [(bytes(name), bytes(value)) for name, value in scope["headers"] if name != b"authorization"]
        state = {name: scope["state"][name] for name in ("id", "owner", "seed")}
        return cls(scope["method"], scope["path"], scope.get("query_string", b""), kept, state, body)

    @property
    def scope(self) -> dict[str, Any]:
        """The same for an application in another process."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # answers look for clients that leave
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query,
            "headers": self.headers,
            "client": None,
            "server": None,
            "state": dict(self.state),
        }
