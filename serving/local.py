"""Which names stand for this machine alone."""

from __future__ import annotations

import ipaddress


def is_local(host: str) -> bool:
    """Whether only this machine reaches a host by that name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
