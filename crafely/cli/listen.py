"""The listening socket, opened before anything else: a taken port is the commonest mistake."""

import errno
import socket


class ListenError(OSError):
    """The address cannot be listened on: one line that says why, and what to do."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 takes a free one. Raises ListenError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        try:
            # After a restart the port may still be in TIME_WAIT; one that is listened on is refused all the same.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen()
        except OSError:
            sock.close()
            raise
    except UnicodeError:
        raise ListenError(f"cannot listen on {host!r}: that is no host name") from None
    except OSError as error:
        reason = "that port is taken" if error.errno == errno.EADDRINUSE else str(error.strerror or error).lower()
        advice = "choose another with --port or CRAFELY_PORT (0 takes a free one)"
        raise ListenError(f"cannot listen on {host}:{port}: {reason}; {advice}") from None
    sock.setblocking(False)
    return sock
