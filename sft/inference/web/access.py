"""Who may reach the page: the address, and the password, which is required unless it is a loopback address."""

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
    """Where the page listens, and who may use it.

    Attributes:
        host, port: the address.
        share: whether there is a public link too.
        user, password: of the login; password None where there is none.
    """

    host: str
    port: int
    share: bool
    user: str
    password: str | None = field(repr=False)

    @classmethod
    def of(cls, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Access:
        """From a config; user and password come only from the environment.

        Raises:
            UserError: the port is invalid, or other machines could reach the page and there is no password.
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
            raise UserError(f"{access.port} is not a port", where="port", remedy="use 1 to 65535; the default is 7860")
        if access.password is None and (access.share or not is_loopback(access.host)):
            raise UserError(
                "others could reach the page, and it has no password",
                where="share=true" if access.share else f"host={access.host}",
                remedy=f"set {PASSWORD} in the environment or .env (the user is {access.user!r}, {USER} is another), "
                "or use 127.0.0.1",
            )
        return access

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password, None where no login is required."""
        return None if self.password is None else (self.user, self.password)

    @property
    def address(self) -> str:
        """The address to open in a browser on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def check_free(self) -> None:
        """Refuse an address that cannot be listened on.

        Raises:
            UserError: it is in use, is not an address of this machine, or needs privileges.
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
                    "ports below 1024 need privileges", where=f"port={self.port}", remedy="port=7860"
                ) from None
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise in_use(self.port) from None
                raise UserError(
                    f"cannot be listened on: {error.strerror}", where=f"host={self.host}", remedy="host=127.0.0.1"
                ) from None


def in_use(port: int) -> UserError:
    """The error for a port that is in use."""
    return UserError("it is already in use", where=f"port={port}", remedy=f"port={port + 1 if port < 65535 else 7860}")


def is_loopback(host: str) -> bool:
    """Whether an address or host name is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(each)).is_loopback for each in found)
