"""IP addresses that no upstream should have: link-local ones, and those of metadata services. Pure.

Whoever can reach them from a cloud machine can ask for that machine's own credentials. A host name
says nothing about where it leads, so the address is judged when a connection is opened; a literal
one is also judged when it is written.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from functools import lru_cache

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_RESERVED = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's wire server, from every machine
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::254/128"),
)
_CARRIERS = (
    # network, and by how many bits the IPv4 address in it is shifted
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (ipaddress.IPv6Network("::/96"), 0),  # compatible
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),  # translated
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 0),  # NAT64 of a network of its own
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)
_LOW_32_BITS = 2**32 - 1


def is_link_local(host: str) -> bool:
    """Whether `host` is such an address, however it is spelt; False for a name."""
    address = parse_ip(host)
    return address is not None and any(
        form.version == network.version and form in network
        for form in _forms(address)
        for network in _RESERVED
    )


@lru_cache(maxsize=1024)
def parse_ip(host: str) -> IPAddress | None:
    """The address that `host` spells; None for a name. IPv6 may have brackets and a zone, IPv4 the
    forms that C libraries take: `169.254.1`, `0xa9fe0001`, `2852039166`."""
    text = host.removeprefix("[").removesuffix("]").partition("%")[0]
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    text = text.removesuffix(".")
    if not text[:1].isdecimal() or " " in text:
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text))
    except (OSError, UnicodeError):
        return None


def _forms(address: IPAddress) -> Iterator[IPAddress]:
    """The address, and the IPv4 one that it carries."""
    yield address
    for network, shift in _CARRIERS:
        if address.version == 6 and address in network:
            yield ipaddress.IPv4Address((int(address) >> shift) & _LOW_32_BITS)
