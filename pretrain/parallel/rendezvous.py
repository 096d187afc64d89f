"""Opens the store where the ranks of a run meet, listening on the address they were given and no other.

torch's own `init_method="env://"` listens on all interfaces of the main rank's machine, also when all ranks are on it:
whoever reaches that port can then take part in the run.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from datetime import timedelta
from typing import Any

from pretrain.parallel.ranks import Ranks


def open_store(ranks: Ranks, timeout: timedelta = timedelta(minutes=30)) -> Any:
    """A `torch.distributed` store on MASTER_ADDR:MASTER_PORT, kept by rank 0; one of this process for one rank.

    None under `torchrun`, whose agent keeps the store already.

    Raises:
        OSError: when the port is taken.
        ValueError: when MASTER_ADDR is not the main rank's.
        torch.distributed.DistNetworkError: when the main rank cannot be reached in time.
    """
    import torch.distributed as dist

    loopback_interface = "lo" if sys.platform == "linux" else "lo0"
    if ranks.count == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback_interface)  # gloo listens even for one process
        return dist.HashStore()  # type: ignore[attr-defined]  # one process needs no port
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    loopback = ipaddress.ip_address(address).is_loopback
    here = ranks.count == ranks.local_count
    if here and loopback:  # gloo's sockets need not be seen from outside either
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback_interface)
    store: Any = dist.TCPStore  # type: ignore[attr-defined]
    if ranks.rank:
        return store(host, port, ranks.count, False, timeout)
    if loopback and not here and address != host:
        address = ""  # Debian maps a machine's own name to loopback, where other machines would not find it
    listening = _listen(address, port)
    return store(host, port, ranks.count, True, timeout, wait_for_workers=False, master_listen_fd=listening.detach())


def _listen(address: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(4096)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(
                f"MASTER_ADDR {address} is not an address of this machine, where rank 0 runs; set it to one that is"
            ) from error
        raise
    return listening
