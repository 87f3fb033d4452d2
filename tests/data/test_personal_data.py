"""What counts as personal data, what does not, and that none of it is written down."""

import pytest

from gemmule.data import personal_data
from gemmule.data.personal_data import find, mask, scan
from gemmule.errors import MissingExtraError
from gemmule.model.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("text", "kind", "severity"),
    [
        ("card 4111 1111 1111 1111, thanks", "payment card", "high"),
        ("5500-0000-0000-0004", "payment card", "high"),
        ("378282246310005", "payment card", "high"),
        ("IBAN DE89 3704 0044 0532 0130 00, please", "bank account (IBAN)", "high"),
        ("GB82WEST12345698765432", "bank account (IBAN)", "high"),
        ("her number is 123-45-6789.", "national identity number", "high"),
        ("CPF 529.982.247-25", "national identity number", "high"),
        ("DNI 54362315K", "national identity number", "high"),
        ("RSSMRA85T10A562S", "national identity number", "high"),
        ("BSN: 111222333", "national identity number", "high"),
        ("NI number AB 12 34 56 C", "national identity number", "high"),
        ("passport no. 533380006", "passport", "high"),
        ("-----BEGIN RSA PRIVATE KEY-----", "private key", "high"),
        ("key = AKIAIOSFODNN7ABCDEFG", "access key", "high"),
        ("password = 'hunter22xx'", "password", "high"),
        ("https://bob:s3cr3tzz@host/x", "password", "high"),
        ("write to jane.doe@acme.co.uk today", "e-mail address", "medium"),
        ("+44 20 7946 0958", "telephone number", "medium"),
        ("(415) 867-5309", "telephone number", "medium"),
        ("Tel: 030 1234567", "telephone number", "medium"),
        ("from 81.2.69.142 at noon", "IP address", "medium"),
        ("2001:4860:4860::8888", "IP address", "medium"),
        ("at 10 Downing Street, London", "street address", "medium"),
        ("Musterstraße 12", "street address", "medium"),
        ("Dr. Jane Doe said", "person's name", "low"),
        ("# Author: Jane van Doe", "person's name", "low"),
        ("Copyright (c) 2001-2004 by Jane Doe", "person's name", "low"),
        ("born 12 March 1980 in Rome", "date of birth", "low"),
    ],
)
def test_found(text: str, kind: str, severity: str) -> None:
    assert (kind, severity) in [(f.kind, f.severity) for f in find(text)]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # a wrong check digit
        "1234567890123452",  # a right one, of no issuer
        "3.141592653589793238",
        "20231231235959123",
        "DE89 3704 0044 0532 0130 01",
        "000-12-3456",
        "38435736E",  # part of a hash, with a check letter that fits by chance
        "someone@example.com",
        "root@localhost",
        "@functools.cache",
        "+35236450.6",
        "555-555-0123",
        "version 81.2.69.142",
        "section 7.1.4.34",
        "10.0.0.1 and 192.168.1.1",
        "12:34:56",
        "password = 'password'",
        "password = '${SECRET_1}'",
        "https://user:password@host",
        "Copyright (c) 2001 Python Software Foundation",
        "by the way",
        "sold by Microsoft Corporation",
    ],
)
def test_left_alone(text: str) -> None:
    assert find(text) == []


def test_of_overlapping_ones_the_most_severe_stays() -> None:
    (match,) = find("postgres://bob:s3cr3tzz@db.acme.com/x")
    assert (match.kind, match.text) == ("password", "s3cr3tzz")


def test_masks_keep_the_shape_alone() -> None:
    assert mask("Jané-7@x.de") == "xxxx-0@x.xx"


def test_without_the_library_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personal_data, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"python-stdnum.*gemmule\[eval\]"):
        personal_data.check_installed()


def test_recalled_is_what_the_text_has_and_the_model_gave(pieces: Tokenizer) -> None:
    def run(prompt: str, gold: str, output: str, memorized: bool = True) -> personal_data.Scan:
        return scan(pieces, *map(pieces.encode, (prompt, gold, output)), memorized)

    mail = "jane@acme.com, said"
    same = run("write to ", mail, mail)
    assert [f["masked"] for f in same.in_text] == ["xxxx@xxxx.xxx"]
    assert same.recalled == same.in_text
    assert same.anywhere
    assert "jane" not in str(same)
    assert run("write to ", mail, "june@acme.com, said").recalled == []
    assert run("write to ", mail, mail, memorized=False).recalled == []
    # Across the border it belongs to the side with the larger part.
    assert run("write to j", mail[1:], mail[1:]).recalled
    assert run("write to jane@acme.c", "om, said", "om, said").in_text == []
    assert run("write to jane@acme.c", "om, said", "om, said").anywhere
    assert run("the captain ", "said never", "said old") == personal_data.Scan([], [], False)
    invented = run("write to ", "the captain", "bob@acme.com")
    assert (invented.in_text, invented.anywhere) == ([], True)
