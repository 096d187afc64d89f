"""What is replaced and, more important, what must stay as it is."""

from __future__ import annotations

import random

import pytest

from configs.schema.data import Privacy
from data_prep.documents.privacy import Redactor, luhn

ALL = Redactor(Privacy(emails=True, ip_addresses=True, phone_numbers=True, card_numbers=True, keys=True))
LETTERS = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ0123456789"


def token(length: int, letters: str = LETTERS) -> str:
    """A made-up key: none stands in this file, or scanners of repositories would report it."""
    chance = random.Random(length)
    return "7a" + "".join(chance.choice(letters) for _ in range(length - 2))


def card(prefix: str, length: int = 16) -> str:
    """A number with a right check digit."""
    chance = random.Random(prefix)
    body = prefix + "".join(chance.choice("0123456789") for _ in range(length - len(prefix) - 1))
    return next(body + digit for digit in "0123456789" if luhn(body + digit))


def grouped(number: str, separator: str = " ") -> str:
    return separator.join(number[start : start + 4] for start in range(0, len(number), 4))


VISA, MASTERCARD, AMEX = card("4929"), card("5425"), card("3782", 15)
FOUND: list[tuple[str, str, str]] = [
    # text, kind, text afterwards
    ("Write to jane.doe+x@uni-bonn.de.", "emails", "Write to email@example.com."),
    ("<a href=mailto:o'neil@mail.co.uk>", "emails", "<a href=mailto:email@example.com>"),
    ("联系人：wang_li@qq.com。", "emails", "联系人：email@example.com。"),
    # A password, words and lists after an address make no login of it.
    ("jane.doe@uni-bonn.de:hunter2", "emails", "email@example.com:hunter2"),
    ("Contact jane.doe@uni-bonn.de: she knows", "emails", "Contact email@example.com: she knows"),
    ("To use ssh, write to jane.doe@uni-bonn.de", "emails", "To use ssh, write to email@example.com"),
    ("scp is explained by jane.doe@uni-bonn.de.", "emails", "scp is explained by email@example.com."),
    ("mailto:jane.doe@uni-bonn.de?subject=a/b", "emails", "mailto:email@example.com?subject=a/b"),
    ("see http://uni-bonn.de/ or jane.doe@uni-bonn.de", "emails", "see http://uni-bonn.de/ or email@example.com"),
    ("git clone it, then ask jane.doe@uni-bonn.de", "emails", "git clone it, then ask email@example.com"),
    ("from 93.184.216.34 port 22", "ip_addresses", "from 192.0.2.1 port 22"),
    ("http://93.184.216.34:8080/x", "ip_addresses", "http://192.0.2.1:8080/x"),
    ("host 93.184.216.34.", "ip_addresses", "host 192.0.2.1."),
    ("ping 2607:f8b0:4005:805::200e now", "ip_addresses", "ping 2001:db8::1 now"),
    ("[2a00:1450:4001:0812:0000:0000:0000:200e]:80", "ip_addresses", "[2001:db8::1]:80"),
    ("Call +49 30 90181234 now", "phone_numbers", "Call <PHONE_NUMBER> now"),
    ("+44 (0)20 7946 0958, London", "phone_numbers", "<PHONE_NUMBER>, London"),
    ("office (212) 736-5000 or", "phone_numbers", "office <PHONE_NUMBER> or"),
    ("office 212-736-5000, fax", "phone_numbers", "office <PHONE_NUMBER>, fax"),
    ("212-736-5000 / 415-555-2671x", "phone_numbers", "<PHONE_NUMBER> / 415-555-2671x"),
    ("Tel.: 030 / 90181234", "phone_numbers", "Tel.: <PHONE_NUMBER>"),
    ("Tél : 01 42 76 40 40", "phone_numbers", "Tél : <PHONE_NUMBER>"),
    ("电话：010-65252266", "phone_numbers", "电话：<PHONE_NUMBER>"),
    ("手机13912345678联系", "phone_numbers", "手机<PHONE_NUMBER>联系"),
    ("请打 139-1234-5678 咨询", "phone_numbers", "请打 <PHONE_NUMBER> 咨询"),
    ("Phone: 0049 30 90181234", "phone_numbers", "Phone: <PHONE_NUMBER>"),
    (f"paid with {grouped(VISA)} today", "card_numbers", "paid with <CARD_NUMBER> today"),
    (f"card: {MASTERCARD}.", "card_numbers", "card: <CARD_NUMBER>."),
    (f"amex {AMEX[:4]}-{AMEX[4:10]}-{AMEX[10:]}", "card_numbers", "amex <CARD_NUMBER>"),
    ("id = AKIA" + "Q3EGRZ7KP4TM2WXY", "keys", "id = <KEY>"),
    ("ghp_" + token(36) + " in a log", "keys", "<KEY> in a log"),
    ("xoxb-" + "123456789012-abcdefABCDEF", "keys", "<KEY>"),
    ("key=AIza" + token(35), "keys", "key=<KEY>"),
    ("eyJ" + token(20) + ".eyJ" + token(60) + "." + token(43), "keys", "<KEY>"),
    ("-----BEGIN RSA PRIVATE KEY-----\n" + token(64) + "\n-----END RSA PRIVATE KEY-----\nx", "keys", "<KEY>\nx"),
    (f'"api_key": "{token(32)}",', "keys", '"api_key": "<KEY>",'),
    (f"export AWS_SECRET_ACCESS_KEY={token(40)}\n", "keys", "export AWS_SECRET_ACCESS_KEY=<KEY>\n"),
    (f"client-secret: {token(24)}", "keys", "client-secret: <KEY>"),
]

KEPT = [
    # Logins on machines, told by what stands around them.
    "git clone git@github.com:owner/project.git",
    "origin  git@gitlab.uni-bonn.de:group/sub/project (fetch)",
    'url = "git@bitbucket.org:owner/project.git"',
    "ssh://git@github.com/owner/project.git and git+ssh://hg@bitbucket.org:22/x",
    "pip install git+https://x-token:abc@github.com/owner/project",
    "ssh -p 2222 admin@server.uni-bonn.de",
    "$ ssh -i ~/.ssh/id_rsa deploy@app.heroku.com uptime",
    "Run `ssh root@box.uni-bonn.de` and wait",
    "rsync -avz --delete build/ www@host.uni-bonn.de:",
    "scp notes.txt student@login.uni-bonn.de:notes.txt",
    "scp student@login.uni-bonn.de:~/notes.txt .",
    "sftp backup@store.uni-bonn.de",
    "docker pull registry://bot@registry.gitlab.com/a/b",
    "@app.route('/') def f(self): pass",
    "icon@2x.png left-pad@1.3.0 a @ b.com",
    "user@example.com, x@host.example and me@localhost stay",
    "private 10.0.0.1 192.168.1.20 127.0.0.1 255.255.255.0 224.0.0.251 169.254.1.1",
    "v93.184.216.34 version 93.184.216.34 build-93.184.216.34 firmware: 93.184.216.34",
    "Chrome/91.4.44.77 and section 1.2.3.4 and 4.12.7.30 Title, OID 1.3.6.1.4.1.311",
    "1.2.3.4.5 01.02.03.04 300.1.2.3 93.184.216.34-beta",
    "std::vector a::b ::1 fe80::1 12:30:45 dead::beef 2001:db8::1 00:1a:2b:3c:4d:5e",
    "2011-10-12 10:30:12 12/10/2011 1984-1985 20111012 103012 1700000000 1700000000123",
    "ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, ISBN-13: 9783161484100, ISSN 2049-3630",
    "pi = 3.14159265358979323846 and -2.71828182845904 and +1.41421356237310",
    "$1,234,567,890.00 12 345 678 901 1,000,000 4929.1234567890",
    "doi:10.1103/PhysRevLett.116.061102 arXiv:1706.03762 RFC 2119 0x7fff5fbff8c0",
    "550e8400-e29b-41d4-a716-446655440000 d41d8cd98f00b204e9800998ecf8427e",
    "token = get_token_from_request(request)  password = os.environ['DB_PASSWORD']",
    "secret: the-quiet-garden-behind-the-house; password=changemechangeme",
    "api_key=your_api_key_goes_here token: /usr/local/share/thing-1.2.3/lib",
    "Tel. (192.168.1.10) call 555-1234 or 8048318",
    "ACGTACGTTTGACA\nACGT 1234567 ACGT\n",
    "sha256:" + "0123456789abcdef" * 4,
]


@pytest.mark.parametrize(("text", "kind", "expected"), FOUND, ids=[f"{kind}-{text[:12]}" for text, kind, _ in FOUND])
def test_found(text: str, kind: str, expected: str) -> None:
    assert ALL(text) == (expected, {kind: 1})
    assert ALL(expected) == (expected, {})
    assert Redactor(Privacy(**{kind: True}))(text) == (expected, {kind: 1})
    assert Redactor(Privacy())(text) == (text, {})


@pytest.mark.parametrize("text", KEPT)
def test_kept(text: str) -> None:
    assert ALL(text) == (text, {})


def test_tables_of_digits_hold_no_cards_and_no_telephones() -> None:
    chance = random.Random(0)
    digits = "".join(chance.choice("0123456789") for _ in range(40_000))
    for width in (4, 5, 8, 10, 11, 13, 15, 16, 19, 60):
        for separator in (" ", "\t", ",", "\n", "  "):
            words = [digits[start : start + width] for start in range(0, len(digits), width)]
            rows = [separator.join(words[start : start + 6]) for start in range(0, len(words), 6)]
            table = "\n".join(rows)
            assert ALL(table) == (table, {}), (width, separator)


def test_several_in_one_text_and_their_counts() -> None:
    text = f"a@b.de c@d.fr +49 30 90181234 from 93.184.216.34 by way of {grouped(VISA, '-')} (no word) ghp_{token(36)}"
    left, counts = ALL(text)
    assert left == (
        "email@example.com email@example.com <PHONE_NUMBER> from 192.0.2.1 by way of <CARD_NUMBER> (no word) <KEY>"
    )
    assert counts == {"keys": 1, "emails": 2, "ip_addresses": 1, "card_numbers": 1, "phone_numbers": 1}


def test_luhn() -> None:
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")


@pytest.mark.slow
def test_long_runs_take_no_longer_than_their_length() -> None:
    for run in (
        "a" * 10**6 + "@",
        "1" * 10**6,
        "1 " * 10**6,
        "a=" * 10**6,
        "@a." * 10**5,
        "2001:" * 10**5,
        "+1" * 10**6,
    ):
        ALL(run)
