"""Who may reach the page: the address, and the password that any other than this machine's own asks for."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sft.config.errors import UserError

PASSWORD, USER = "SFT_WEBUI_PASSWORD", "SFT_WEBUI_USER"


@dataclass(frozen=True)
class Access:
    """Where the page listens and for whom.

    Attributes:
        host, port: the address.
        share: whether a public link leads to it too.
        user, password: of the login; password None where there is none.
    """

    host: str
    port: int
    share: bool
    user: str
    password: str | None = field(repr=False)

    @classmethod
    def of(cls, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Access:
        """From a config; user and password are the environment's alone.

        Raises:
            UserError: a port that is none, or others than this machine could reach the page and there is no password.
        """
        environment = os.environ if environment is None else environment
        access = cls(
            str(settings["host"]).strip("[]"),
            settings["port"],
            settings["share"],
            environment.get(USER) or "sft",
            environment.get(PASSWORD) or None,
        )
        if not 1 <= access.port <= 65535:
            raise UserError(f"{access.port} is no port", where="port", remedy="give 1 to 65535; 7860 is the usual one")
        if access.password is None and (access.share or not is_loopback(access.host)):
            raise UserError(
                "others could reach the page, and it has no password",
                where="share=true" if access.share else f"host={access.host}",
                remedy=f"set {PASSWORD} in the environment or .env (the user is {access.user!r}, {USER} is another), "
                "or leave it to 127.0.0.1",
            )
        return access

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password, None where nobody is asked."""
        return None if self.password is None else (self.user, self.password)

    @property
    def address(self) -> str:
        """What to open in a browser on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def check_free(self) -> None:
        """Refuse an address that cannot be listened on.

        Raises:
            UserError: something else listens there, it is not this machine's, or it may not be used.
        """
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        except OSError:
            raise UserError("no such host", where=f"host={self.host}", remedy="host=127.0.0.1") from None
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except PermissionError:
                raise UserError(
                    "ports below 1024 are the system's", where=f"port={self.port}", remedy="port=7860"
                ) from None
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise in_use(self.port) from None
                raise UserError(
                    f"cannot be listened on: {error.strerror}", where=f"host={self.host}", remedy="host=127.0.0.1"
                ) from None


def in_use(port: int) -> UserError:
    """Something else listens on the port."""
    return UserError(
        "something else listens on it", where=f"port={port}", remedy=f"port={port + 1 if port < 65535 else 7860}"
    )


def is_loopback(host: str) -> bool:
    """Whether an address or a name leads to this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(each)).is_loopback for each in found)
