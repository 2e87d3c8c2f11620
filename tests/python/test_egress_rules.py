"""Rules of egress: what they mean, what is refused, and the SOCKS messages."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowork_nsrun import SpecError
from cowork_nsrun.policy import EgressLimits, EgressRules, Rule, Upstream, environment, socks
from cowork_nsrun.policy.hosts import HostError, is_special, kind_of, parse_host

DOCUMENT = Path(__file__).parents[2] / "docs" / "egress.md"
NAMES = st.from_regex(
    r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,8}[a-z0-9])?){1,4}", fullmatch=True
)
ADDRESSES = st.one_of(
    st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address)
)
PORTS = st.integers(1, 65535)


def allowed(rule: str, host: str, port: int = 443) -> bool:
    return EgressRules(allow=[rule]).check(parse_host(host), port).allowed


# --- what a rule means ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "host", "port", "expected"),
    [
        ("example.com", "example.com", 443, True),
        ("example.com", "EXAMPLE.com.", 1, True),
        ("example.com", "www.example.com", 443, False),
        ("example.com", "notexample.com", 443, False),
        ("example.com", "example.com.evil.net", 443, False),
        ("Example.COM.", "example.com", 443, True),
        ("*.example.com", "www.example.com", 443, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "wwwexample.com", 443, False),
        ("example.com:443", "example.com", 443, True),
        ("example.com:443", "example.com", 80, False),
        ("example.com:80,443", "example.com", 80, True),
        ("example.com:8000-8999", "example.com", 8999, True),
        ("example.com:8000-8999", "example.com", 9000, False),
        ("*:443", "anything.org", 443, True),
        ("*:443", "anything.org", 22, False),
        ("*", "8.8.8.8", 53, True),
        ("8.8.8.8", "8.8.8.8", 53, True),
        ("8.8.8.8:53", "8.8.8.8", 54, False),
        ("8.8.8.0/24", "8.8.8.9", 53, True),
        ("8.8.8.0/24", "8.8.9.1", 53, False),
        ("2606:4700::/32", "2606:4700::1111", 443, True),
        ("[2606:4700::/32]:443", "2606:4700::1111", 443, True),
        ("[2606:4700::1111]:443", "2606:4700::1111", 80, False),
        ("8.8.8.8", "::ffff:8.8.8.8", 53, True),
        ("::ffff:8.8.8.0/120", "8.8.8.8", 53, True),
        ("bücher.example", "xn--bcher-kva.example", 443, True),
        ("xn--bcher-kva.example", "BÜCHER。example", 443, True),
        ("8.8.8.8", "\uff18.8.8.8", 53, True),
        ("8.8.8.8", "dns.google", 53, False),
        ("my_bucket.example.com", "my_bucket.example.com", 443, True),
    ],
)
def test_meaning(rule: str, host: str, port: int, expected: bool) -> None:
    assert allowed(rule, host, port) is expected


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ("", "empty"),
        (".example.com", r"\*\.example\.com"),
        ("https://example.com", "example.com:443"),
        ("user@example.com", "user name"),
        ("example.com/path", "path"),
        ("exa*mple.com", "beginning"),
        ("*example.com", "beginning"),
        ("a.*.com", "beginning"),
        ("*.*.com", "beginning"),
        ("*.", "empty"),
        ("*.10.0.0.1", "below an address"),
        ("a..b", "two dots"),
        ("example.com..", "two dots"),
        ("a" * 64 + ".com", "1 to 63"),
        ("a." * 127 + "com", "longer"),
        ("-a.com", "hyphen"),
        ("exa mple.com", "letters"),
        ("example.com\n", "letters"),
        ("example.com:", "ports"),
        ("example.com:http", "ports"),
        ("example.com:0", "from 1"),
        ("example.com:65536", "from 1"),
        ("example.com:90-80", "range"),
        ("example.com:80,", "ports"),
        ("example.com:٤٤٣", "ports"),
        ("127.1", "four decimal"),
        ("0x7f.1", "four decimal"),
        ("2130706433", "four decimal"),
        ("010.0.0.1", "four decimal"),
        ("10.0.0.1/8", "host bits"),
        ("10.0.0.0/33", "network"),
        ("10.0.0.0/255.0.0.0", "prefix"),
        ("10.0.0.0/", "prefix"),
        ("fe80::1%eth0", "zone"),
        ("[example.com]:443", "brackets"),
        ("[::1", "brackets"),
        ("2001:db8::1:zz", "IPv6"),
        ("☃☃.example", "international"),
        ("x" * 5000, "longer"),
    ],
)
def test_wrong_rules_are_refused_by_name(rule: str, hint: str) -> None:
    for side in ("allow", "deny"):
        with pytest.raises(SpecError, match=hint) as caught:
            EgressRules(**{side: ["fine.example", rule]})
        assert caught.value.field == f"EgressRules.{side}"
        assert repr(rule[:100])[1:-1] in str(caught.value)


def test_rules_are_a_sequence_of_strings() -> None:
    with pytest.raises(SpecError, match="sequence"):
        EgressRules(allow="example.com")
    with pytest.raises(SpecError, match="string"):
        EgressRules(allow=[7])  # type: ignore[list-item]
    with pytest.raises(SpecError, match="allow_private"):
        EgressRules(deny=[Rule("a.example", allow_private=True)])
    with pytest.raises(SpecError, match="True or False"):
        Rule("a.example", allow_private=1)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="connections"):
        EgressLimits(connections=0)


def test_nothing_is_allowed_by_default() -> None:
    verdict = EgressRules().check("example.com", 443)
    assert not verdict.allowed
    assert '"example.com:443"' in verdict.reason


def test_deny_wins() -> None:
    rules = EgressRules(allow=["*", "bad.example.com"], deny=["*.example.com", "9.9.9.0/24"])
    assert rules.check("example.com", 443).allowed
    verdict = rules.check("bad.example.com", 443)
    assert (verdict.allowed, str(verdict.rule)) == (False, "*.example.com")
    assert "take that rule away" in verdict.reason
    assert not rules.check(ip_address("9.9.9.9"), 443).allowed
    # a name that leads there, too; also through a translator
    for address in ("9.9.9.9", "64:ff9b::909:909"):
        assert not rules.check_address("other.org", 443, ip_address(address)).allowed
    assert rules.check_address("other.org", 443, ip_address("9.9.8.8")).allowed


# --- hosts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "1.2.3", "1.2.3.4.5", "0x",
     "127.0.0.01", "256.1.1.1", "", ".", "a..b", ".a", "a b", "a\0b", "a%2eb", "a/b", "a\\b",
     "::1%lo", ":", "é" * 2000, "\uff11\uff12\uff17.1", "a\r\nb", "①②⑦.1"],
)  # fmt: skip
def test_these_are_no_hosts(text: str) -> None:
    with pytest.raises(HostError):
        parse_host(text)


@given(st.text(max_size=80))
def test_a_host_is_a_fixed_point(text: str) -> None:
    try:
        host = parse_host(text)
    except HostError:
        return
    assert parse_host(str(host)) == host
    if isinstance(host, str):
        assert host.isascii()
        assert host == host.lower()
        # whatever inet_aton takes for an address is none of our names
        with pytest.raises(OSError, match="illegal"):
            socket.inet_aton(host)


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1", "loopback"), ("::1", "loopback"), ("10.1.2.3", "private"),
        ("172.31.0.1", "private"), ("192.168.1.1", "private"), ("fd00::1", "private"),
        ("169.254.1.1", "link-local"), ("fe80::1", "link-local"), ("100.64.0.1", "carrier"),
        ("224.0.0.1", "multicast"), ("ff02::1", "multicast"), ("0.0.0.0", "this host"),
        ("::", "this host"), ("255.255.255.255", "reserved"), ("192.0.2.1", "documentation"),
        ("198.19.0.1", "benchmarking"), ("2001:db8::1", "documentation"),
        ("2002:808:808::", "6to4"),
        ("2001::1", "Teredo"), ("169.254.169.254", "metadata"), ("fd00:ec2::254", "metadata"),
        ("168.63.129.16", "metadata"), ("100.100.100.200", "metadata"), ("::127.0.0.1", "reserved"),
        ("64:ff9b:1::1", "translation"), ("fec0::1", "site-local"), ("5f00::1", "reserved"),
    ],
)  # fmt: skip
def test_what_is_not_public(address: str, word: str) -> None:
    assert word in kind_of(ip_address(address))
    for rules in (EgressRules(allow=["*"]), EgressRules(allow=["name.example"])):
        verdict = rules.check_address("name.example", 80, ip_address(address))
        assert not verdict.allowed
        assert word in verdict.reason
    rules = EgressRules(allow=["name.example", address])
    assert rules.check_address("name.example", 80, ip_address(address)).allowed


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_what_is_public(address: str) -> None:
    assert kind_of(ip_address(address)) == ""
    assert EgressRules(allow=["*"]).check_address("a.b", 1, ip_address(address)).allowed


@given(ADDRESSES)
def test_no_less_strict_than_ipaddress(address: IPv4Address | IPv6Address) -> None:
    if address.is_private or address.is_multicast or address.is_link_local or address.is_loopback:
        mapped = isinstance(address, IPv6Address) and address.ipv4_mapped
        assert mapped or kind_of(address)


def test_translated_addresses_are_looked_through() -> None:
    rules = EgressRules(allow=["*"])
    inner = ip_address("64:ff9b::7f00:1")
    assert not rules.check_address("a.example", 80, inner).allowed
    assert not rules.check_address(inner, 80, inner).allowed
    assert EgressRules(allow=["*", "127.0.0.1"]).check_address("a.example", 80, inner).allowed


def test_how_private_addresses_are_opened() -> None:
    private = ip_address("10.0.0.5")
    metadata = ip_address("169.254.169.254")

    def opened(*allow: str | Rule, address: IPv4Address | IPv6Address = private) -> bool:
        return EgressRules(allow=allow).check_address("db.example", 5432, address).allowed

    assert not opened("db.example")
    assert opened("db.example", "10.0.0.5:5432")
    assert not opened("db.example", "10.0.0.5:80")
    assert opened("db.example", "10.0.0.0/8")
    # the internet is not the local network
    assert not opened("db.example", "0.0.0.0/0")
    assert opened("db.example", Rule("0.0.0.0/0", allow_private=True))
    assert opened(Rule("db.example", allow_private=True))
    assert opened(Rule("*.example:5432", allow_private=True))
    assert not opened("db.example", Rule("other.example", allow_private=True))
    assert not opened(Rule("db.example:80", allow_private=True), "db.example")
    # a machine's credentials, only by exactly that address
    for rule in (Rule("db.example", allow_private=True), "169.254.0.0/16"):
        assert not opened("db.example", rule, address=metadata)
    assert opened("db.example", "169.254.169.254", address=metadata)


def test_this_machines_public_addresses() -> None:
    address = ip_address("8.8.8.8")

    def opened(*allow: str | Rule) -> bool:
        rules = EgressRules(allow=allow)
        return rules.check_address("a.example", 80, address, this_machine=True).allowed

    assert not opened("*")
    assert not opened("a.example", "8.8.8.0/24")
    assert opened("a.example", "8.8.8.8")
    assert opened(Rule("a.example", allow_private=True))


# --- properties of matching -----------------------------------------------------------------


@given(NAMES, PORTS)
def test_a_name_matches_itself_and_not_its_kin(name: str, port: int) -> None:
    host = parse_host(name)
    assert EgressRules(allow=[name]).check(host, port).allowed
    assert EgressRules(allow=[f"{name}:{port}"]).check(host, port).allowed
    assert not EgressRules(allow=[f"*.{name}"]).check(host, port).allowed
    below = parse_host(f"x.{name}")
    assert not EgressRules(allow=[name]).check(below, port).allowed
    assert EgressRules(allow=[f"*.{name}"]).check(below, port).allowed
    assert not EgressRules(allow=[f"*.{name}"]).check(parse_host(f"x{name}"), port).allowed
    assert not EgressRules(allow=["*"], deny=[name]).check(host, port).allowed


@given(ADDRESSES, st.data())
def test_networks_match_as_arithmetic_says(
    address: IPv4Address | IPv6Address, data: st.DataObject
) -> None:
    host = parse_host(str(address))
    assert not isinstance(host, str)
    bits = host.max_prefixlen
    prefix = data.draw(st.integers(0, bits))
    base = int(host) >> (bits - prefix) << (bits - prefix)
    kind = type(host)
    rule = f"{kind(base)}/{prefix}"
    assert EgressRules(allow=[rule]).check(host, 80).allowed
    if prefix:
        other = kind(int(host) ^ 1 << (bits - prefix))
        assert not Rule(rule).matches(other, 80)


@given(st.text(max_size=60))
def test_a_rule_is_refused_or_well_formed(text: str) -> None:
    try:
        rule = Rule(text)
    except SpecError:
        return
    if rule.network is not None:
        assert isinstance(is_special(rule.network), bool)
    elif not rule.everything:
        assert parse_host(rule.name) == rule.name


# --- SOCKS messages -------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_socks_parsers_are_total_and_bounded(data: bytes) -> None:
    try:
        greeting = socks.parse_greeting(data)
        assert greeting is not None or len(data) < 2 + 255
    except socks.SocksError:
        pass
    try:
        parsed = socks.parse_request(data)
    except socks.SocksError:
        return
    if parsed is None:
        assert len(data) < socks.MESSAGE_MAX
    else:
        assert parsed[1] <= len(data)
        # no prefix of it is complete
        assert socks.parse_request(data[: parsed[1] - 1]) is None


@given(st.one_of(NAMES, ADDRESSES), st.integers(0, 65535), st.binary(max_size=9))
def test_socks_requests_are_read_as_written(
    host: str | IPv4Address | IPv6Address, port: int, rest: bytes
) -> None:
    if isinstance(host, str):
        wire = bytes([socks.NAME, len(host)]) + host.encode()
    else:
        kind = socks.IPV4 if isinstance(host, IPv4Address) else socks.IPV6
        wire = bytes([kind]) + host.packed
    message = b"\5\1\0" + wire + port.to_bytes(2)
    parsed = socks.parse_request(message + rest)
    assert parsed == (socks.Request(str(host), port), len(message))


# --- the rest -------------------------------------------------------------------------------


def test_environment() -> None:
    values = environment()
    for name in ("HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "http_proxy"):
        assert values[name] == "http://127.0.0.1:3128"
    assert values["all_proxy"] == values["ALL_PROXY"] == "http://127.0.0.1:3128"
    assert "localhost" in values["no_proxy"].split(",")
    assert environment(8080)["ALL_PROXY"] == "http://127.0.0.1:8080"
    assert environment(socks=True)["ALL_PROXY"] == "socks5h://127.0.0.1:1080"


def test_an_upstreams_password_is_never_shown() -> None:
    upstream = Upstream("http://user:p%40ss@proxy.example:8080")
    assert (upstream.host, upstream.port) == ("proxy.example", 8080)
    assert "p%40ss" not in repr(upstream)
    assert "dXNlcjpwQHNz" not in repr(upstream)
    assert upstream.headers() == [(b"Proxy-Authorization", b"Basic dXNlcjpwQHNz")]
    for url in ("https://u:secret@h", "http://u:secret@h:x", "socks5://h", "http://u:secret@[h"):
        with pytest.raises(SpecError) as caught:
            Upstream(url)
        assert "secret" not in str(caught.value)
    assert Upstream.from_environment({}) is None
    assert Upstream.from_environment({"HTTPS_PROXY": "http://h:1"}) == Upstream("http://h:1")


ROW = re.compile(r"^\| `([^`]+)` \| ((?:`[^`]+` ?)+)\| ((?:`[^`]+` ?)+)\|$", re.M)


def test_the_documents_examples() -> None:
    rows = ROW.findall(DOCUMENT.read_text())
    assert len(rows) == 10
    for rule, does, does_not in rows:
        rules = EgressRules(allow=[rule])
        for text, expected in ((does, True), (does_not, False)):
            for target in re.findall(r"`\[?([^`]+?)\]?:(\d+)`", text):
                host, port = parse_host(target[0]), int(target[1])
                address = host if not isinstance(host, str) else ip_address("8.8.8.8")
                allowed = (
                    rules.check(host, port).allowed
                    and rules.check_address(host, port, address).allowed
                )
                assert allowed is expected, (rule, target)
