"""Addresses that no upstream should have, in whatever form they are spelt."""

from __future__ import annotations

import pytest

from aisix.core.addresses import is_link_local


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.0",
        "169.254.255.255",
        "169.254.169.254.",
        "168.63.129.16",
        "2852039166",
        "0xA9FEA9FE",
        "0xa9.0xfe.0xa9.0xfe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "169.16689662",
        "fe80::1",
        "[fe80::1]",
        "fe80::1%eth0",
        "febf:ffff::1",
        "FD00:EC2::254",
        "[fd00:ec2:0:0:0:0:0:254]",
        "::ffff:169.254.169.254",
        "::ffff:a9fe:a9fe",
        "::ffff:168.63.129.16",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::169.254.169.254",
        "2002:a9fe:a9fe::1",
        "2002:a83f:8110:ffff::1",
    ],
)
def test_link_local_and_metadata_addresses_are_known(host):
    assert is_link_local(host)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.0.0.4",
        "192.168.1.1",
        "172.16.0.1",
        "169.253.255.255",
        "169.255.0.0",
        "168.63.129.17",
        "100.64.0.1",
        "0.0.0.0",
        "8.8.8.8",
        "::1",
        "::",
        "fd00::1",
        "fd00:ec2::253",
        "fec0::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "64:ff9b::8.8.8.8",
        "2002:7f00:1::1",
        "acme-west.openai.azure.com",
        "169.254.169.254.example.com",
        "169-254-169-254.example.com",
        "1e100.net",
        "",
        "999.1.1.1",
        "0x",
        "fe80:",
        "²",
    ],
)
def test_loopback_private_and_public_addresses_and_names_are_not_among_them(host):
    assert not is_link_local(host)
