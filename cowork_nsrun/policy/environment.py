"""The environment variables by which programs find a proxy."""

from __future__ import annotations

HTTP_PORT = 3128
SOCKS_PORT = 1080
NO_PROXY = "localhost,127.0.0.1,::1"


def environment(
    http_port: int = HTTP_PORT, socks_port: int = SOCKS_PORT, *, socks: bool = False
) -> dict[str, str]:
    """The variables for a sandbox in which the proxy listens on 127.0.0.1.

    Arguments:
        http_port: port of the proxy for HTTP and HTTPS.
        socks_port: port of the proxy for everything else.
        socks: set ALL_PROXY to ``socks5h`` rather than to the HTTP proxy.  Some programs fail
            then (Python's httpx without its ``socks`` extra).
    """
    http = f"http://127.0.0.1:{http_port}"
    everything = f"socks5h://127.0.0.1:{socks_port}" if socks else http
    # both cases: curl reads only http_proxy, others only HTTP_PROXY
    pairs = {
        "HTTP_PROXY": http,
        "HTTPS_PROXY": http,
        "ALL_PROXY": everything,
        "NO_PROXY": NO_PROXY,
    }
    both = pairs | {name.lower(): value for name, value in pairs.items()}
    return both | {
        "grpc_proxy": http,  # gRPC's C core
        "RSYNC_PROXY": f"127.0.0.1:{http_port}",  # rsync, by CONNECT
        "NODE_USE_ENV_PROXY": "1",  # node's own fetch and http, from 24 and 22.21 on
    }
