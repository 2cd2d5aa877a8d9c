"""Our packet rules, read back by nft(8) itself."""

from __future__ import annotations

import re
import shutil

import pytest

from perdure.testing import namespaces

PROGRAM = """
import subprocess
from perdure.linux import nftables as n
from perdure.linux.nftables import Batch

netlink = n.open_netlink()
batch = Batch("t")
batch.table()
batch.addresses("networks", networks=True)
batch.addresses("names")
batch.chain("side")
batch.chain("way", n.FILTER, n.FORWARD, accepts=False)
batch.chain("raw", n.FILTER, n.PREROUTING, n.RAW)
batch.chain("in", n.NAT, n.PREROUTING, n.DSTNAT)
batch.chain("out", n.NAT, n.POSTROUTING, n.SRCNAT)
batch.rule("way", n.KNOWN, n.ACCEPT)
batch.rule("way", n.came_from("tap0"), n.goes_to("up*"), n.jump("side"))
batch.rule("way", n.came_from("up*", not_=True), n.is_to_port(n.UDP, 53), n.REJECT)
batch.rule("raw", n.came_from("tap0"), n.is_from("172.31.255.2", not_=True), n.DROP)
batch.rule("side", n.is_to("169.254.0.0", 16), n.DROP)
batch.rule("side", n.is_to_one_of("networks"), n.ACCEPT)
batch.rule("side", n.is_from_one_of("names"), n.is_protocol(n.ICMP), n.ACCEPT)
batch.rule("in", n.came_from("up*"), n.send_to("172.31.255.2"))
batch.rule("out", n.goes_to("up*"), n.BEGINS, n.MASQUERADE_ANEW)
batch.rule("out", n.goes_to("up*"), n.MASQUERADE)
batch.add_networks("networks", [("10.0.0.0", 8), ("192.0.2.1", 32), ("255.255.255.0", 24)])
batch.add_addresses("names", ["198.51.100.7"], 3600)
batch.apply(netlink)
"""
LISTED = """\
table ip t {
    set networks {
        type ipv4_addr
        flags interval
        elements = { 10.0.0.0/8, 192.0.2.1, 255.255.255.0/24 }
    }

    set names {
        type ipv4_addr
        flags timeout
        elements = { 198.51.100.7 timeout 1h expires EXPIRES }
    }

    chain side {
        ip daddr 169.254.0.0/16 drop
        ip daddr @networks accept
        ip saddr @names meta l4proto icmp accept
    }

    chain way {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "tap0" oifname "up*" jump side
        iifname != "up*" udp dport 53 reject with icmp admin-prohibited
    }

    chain raw {
        type filter hook prerouting priority raw; policy accept;
        iifname "tap0" ip saddr != 172.31.255.2 drop
    }

    chain in {
        type nat hook prerouting priority dstnat; policy accept;
        iifname "up*" dnat to 172.31.255.2
    }

    chain out {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "up*" tcp flags syn / syn,ack masquerade fully-random
        oifname "up*" masquerade
    }
}
"""

pytestmark = pytest.mark.skipif(shutil.which("nft") is None, reason="nft (nftables) is not installed")


def test_nft_reads_what_we_wrote() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        PROGRAM + "print(subprocess.run(['nft', 'list', 'ruleset'], capture_output=True, text=True).stdout)"
    )
    said = re.sub(r"expires \w+", "expires EXPIRES", said)
    said = re.sub(r",\s+", ", ", said).expandtabs(4).replace("established, related", "established,related")
    assert said.strip() == LISTED.strip()


def test_a_batch_that_is_refused_changes_nothing() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        PROGRAM
        + """
again = Batch("t")
again.chain("more")
again.rule("nowhere", n.ACCEPT)
try:
    again.apply(netlink)
except FileNotFoundError:
    print("refused")
again = Batch("t")
again.table()
try:
    again.apply(netlink)
except FileExistsError:
    print("there already")
print("more" in subprocess.run(['nft', 'list', 'ruleset'], capture_output=True, text=True).stdout)
last = Batch("t")
last.remove_addresses("names", ["198.51.100.7"])
last.empty("side")
last.apply(netlink)  # the socket is good for more
print("198.51" in subprocess.run(['nft', 'list', 'ruleset'], capture_output=True, text=True).stdout)
"""
    )
    assert said.split("\n") == ["refused", "there already", "False", "False", ""]
