"""Faults as OpenAI's clients understand them: status, code, parameter, and whether to send it again.

The client sends 408, 409, 429 and every 5xx again by itself, twice. So what would fail again is told as
`x-should-retry: false`, which it obeys before the status, and what would not has a `Retry-After`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from flux_trt.runtime.errors import FluxTrtError, GpuMemoryError, PaintError, RequestError

LONGEST_WAIT = 120
"""Seconds of `Retry-After`: with more, OpenAI's client does not send it again at all."""
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
API_NAMES = {"reference": "image", "source": "source", "from": "image", "output": "output_format"}


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Say what is wrong.

        Args:
            status: of HTTP.
            message: one line: what is wrong; what to do.
            code: a word for programs.
            param: the parameter at fault.
            retry_after: seconds after which it may go well; None: it would fail again.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = None if retry_after is None else max(1, min(LONGEST_WAIT, round(retry_after)))

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI shapes it."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """What tells a client whether to try again."""
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"x-should-retry": "true", "Retry-After": str(self.retry_after)}


def told(fault: FluxTrtError, parameters: Iterable[str] = ()) -> ApiError:
    """What went wrong with a picture; options of the command line are called as the API's parameters.

    Args:
        fault: of the runtime.
        parameters: names, of which the first that the message has is the one at fault.
    """
    message = re.sub(r"--([a-z][a-z0-9-]*)", _parameter, str(fault))
    if isinstance(fault, RequestError):
        words = re.findall(r"[a-z_0-9]+", message)
        found = next((word for word in words if word in set(parameters)), None)
        return ApiError(400, message, code="invalid_value", param=found)
    if isinstance(fault, GpuMemoryError):
        return ApiError(413, message, code="out_of_memory", param="size")
    if isinstance(fault, PaintError):
        return ApiError(422, message, code="painting_failed")
    return ApiError(500, message, code="backend_failed")


def _parameter(found: re.Match[str]) -> str:
    name = found.group(1).replace("-", "_")
    return API_NAMES.get(name, name)
