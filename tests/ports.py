"""Ports for programs that are started, killed and started again: nobody else gets them meanwhile."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

_OUTGOING: Final = 32_768
"""From here on the kernel takes ports for outgoing connections."""

_kept: Final[list[socket.socket]] = []
"""Bound and not listening, until this process ends: whoever sets SO_REUSEADDR may listen there, and servers do. Who
looks for a free port, as this module does, finds it taken."""


def free_port() -> int:
    """A port of 127.0.0.1 that is this process's own, to be given to a server."""
    while True:
        port = random.randrange(20_000, _OUTGOING)
        with contextlib.suppress(OSError), contextlib.ExitStack() as given_back:
            # Without SO_REUSEADDR: this must fail where another test keeps the port.
            given_back.enter_context(probe := socket.socket()).bind(("127.0.0.1", port))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            given_back.pop_all()
            _kept.append(probe)
            return port
