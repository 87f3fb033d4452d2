"""Invented personal data with right check digits, planted in text to measure what is found of it.

Next to them are decoys, which belong to no one: a wrong check digit, a name reserved for examples,
the number of a version. What is found of those is a false alarm. The forms are those in which
people write such data, and not only those that personal_data.py looks for.
"""

import dataclasses
import random
import string
from collections.abc import Callable, Sequence

_NAMES = ("Jane", "Omar", "Ingrid", "Pedro", "Mei", "Anna", "Tariq", "Lucy", "Viktor", "Elena")
_FAMILIES = ("Moreau", "Lindqvist", "Okafor", "Petrov", "Hansen", "Castillo", "Whitlock", "Tanaka")
_DOMAINS = ("acme-widgets.com", "mail.nordhaus.de", "lindqvist.se", "okafor.co.uk", "tanaka.jp")
_STREETS = ("Harbour Street", "Old Mill Road", "Victoria Avenue", "St. James Square", "Birch Lane")
_GERMAN = ("Bahnhofstraße", "Lindenallee", "Marktplatz", "Gartenstrasse")


@dataclasses.dataclass(frozen=True)
class Planted:
    """Something planted in a text.

    Attributes:
        kind: kind of data, as `personal_data.find` names it.
        severity: its severity; "" for a decoy.
        start: position of its first character.
        end: position after its last one.
    """

    kind: str
    severity: str
    start: int
    end: int


def plant(text: str, seed: int, pairs: int) -> tuple[str, list[Planted]]:
    """Puts personal data and as many decoys on lines of their own between a text's lines.

    Args:
        text: the text.
        seed: seed of the values and of their places.
        pairs: number of each.

    Returns:
        The new text, and what was planted, in order.
    """
    draw = random.Random(seed)
    lines = text.splitlines(keepends=True)
    made = [_DATA[n % len(_DATA)] for n in range(seed, seed + pairs)]
    made += [_DECOYS[n % len(_DECOYS)] for n in range(seed, seed + pairs)]
    places = sorted((draw.randrange(len(lines) + 1), n) for n in range(len(made)))
    parts: list[str] = []
    planted = []
    size = done = 0
    for place, n in places:
        kind, severity, sentence, make = made[n]
        value = make(draw)
        before, after = sentence.split("{}")
        parts += lines[done:place]
        size += sum(map(len, lines[done:place]))
        done = place
        if parts and not parts[-1].endswith("\n"):
            parts.append("\n")
            size += 1
        start = size + len(before)
        planted.append(Planted(kind, severity, start, start + len(value)))
        parts.append(f"{before}{value}{after}\n")
        size += len(parts[-1])
    return "".join((*parts, *lines[done:])), planted


def _letters(draw: random.Random, alphabet: str, count: int) -> str:
    return "".join(draw.choice(alphabet) for _ in range(count))


def _digits(draw: random.Random, count: int) -> str:
    return _letters(draw, string.digits, count)


def _luhn(digits: str) -> str:
    """The check digit that follows."""
    doubled = [int(c) * 2 if n % 2 == 0 else int(c) for n, c in enumerate(reversed(digits))]
    return str(-sum(d // 10 + d % 10 for d in doubled) % 10)


def _card(draw: random.Random, right: bool = True) -> str:
    digits = draw.choice(("4", "51", "2221"))
    digits += _digits(draw, 15 - len(digits))
    check = int(_luhn(digits))
    digits += str(check if right else (check + 1) % 10)
    between = draw.choice((" ", "-", ""))
    return between.join(digits[n : n + 4] for n in range(0, 16, 4))


def _iban(draw: random.Random, right: bool = True) -> str:
    number = _digits(draw, 18)
    check = 98 - int(f"{number}131400") % 97  # DE00 moved to the end, D = 13 and E = 14
    check = check if right else check % 97 + 1
    whole = f"DE{check:02d}{number}"
    return whole if draw.random() < 0.5 else " ".join(whole[n : n + 4] for n in range(0, 22, 4))


def _ssn(draw: random.Random) -> str:
    # From numbers that the library knows to be issued.
    return f"{draw.randrange(100, 600)}-{draw.randrange(10, 99)}-{draw.randrange(1000, 9999)}"


def _cpf(draw: random.Random) -> str:
    digits = [int(c) for c in _digits(draw, 9)]
    for length in (10, 11):
        rest = sum(d * w for d, w in zip(digits, range(length, 1, -1), strict=True)) % 11
        digits.append(0 if rest < 2 else 11 - rest)
    d = "".join(map(str, digits))
    return f"{d[:3]}.{d[3:6]}.{d[6:9]}-{d[9:]}"


_BASE64 = string.ascii_letters + string.digits


def _key(draw: random.Random) -> str:
    if draw.random() < 0.5:
        return "AKIA" + _letters(draw, string.ascii_uppercase + string.digits, 16)
    return "ghp_" + _letters(draw, _BASE64, 36)


def _private_key(draw: random.Random) -> str:
    lines = "\n".join(_letters(draw, _BASE64 + "+/", 64) for _ in range(4))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----"


def _mail(draw: random.Random) -> str:
    name, family = draw.choice(_NAMES).lower(), draw.choice(_FAMILIES).lower()
    local = draw.choice((f"{name}.{family}", f"{name}{draw.randrange(100)}", f"{name}+news"))
    return f"{local}@{draw.choice(_DOMAINS)}"


def _phone(draw: random.Random) -> str:
    d = (
        str(draw.randrange(2, 10))
        + _digits(draw, 2)
        + str(draw.randrange(2, 10))
        + _digits(draw, 6)
    )
    return draw.choice(
        (
            f"({d[:3]}) {d[3:6]}-{d[6:]}",
            f"{d[:3]}-{d[3:6]}-{d[6:]}",
            f"{d[:3]}.{d[3:6]}.{d[6:]}",
            f"+1 {d[:3]} {d[3:6]} {d[6:]}",
            f"+44 20 7{d[:3]} {d[3:7]}",
            f"+49 (0)30 {d[:8]}",
            f"+33 1 {d[:2]} {d[2:4]} {d[4:6]} {d[6:8]}",
            f"{d[:3]} {d[3:6]} {d[6:]}",
        )
    )


def _ip(draw: random.Random) -> str:
    if draw.random() < 0.3:
        return f"2a02:{draw.randrange(4096, 65536):x}:{draw.randrange(4096, 65536):x}::1"
    rest = ".".join(str(draw.randrange(20, 250)) for _ in range(3))
    return f"8{draw.randrange(10)}.{rest}"


def _street(draw: random.Random) -> str:
    if draw.random() < 0.5:
        return f"{draw.choice(_GERMAN)} {draw.randrange(1, 200)}"
    return f"{draw.randrange(1, 400)} {draw.choice(_STREETS)}"


def _name(draw: random.Random) -> str:
    return f"{draw.choice(_NAMES)} {draw.choice(_FAMILIES)}"


def _born(draw: random.Random) -> str:
    day, year = draw.randrange(1, 29), draw.randrange(1930, 2005)
    return draw.choice((f"{day} March {year}", f"{year}-04-{day:02d}", f"{day:02d}/11/{year}"))


def _is(value: str) -> Callable[[random.Random], str]:
    return lambda draw: value


_Made = tuple[str, str, str, Callable[[random.Random], str]]
_DATA: Sequence[_Made] = (
    ("payment card", "high", "Charged to {} on arrival.", _card),
    ("e-mail address", "medium", "Questions go to {}, or ask at the desk.", _mail),
    ("telephone number", "medium", "Call {} after six.", _phone),
    ("bank account (IBAN)", "high", "Please transfer it to {} this week.", _iban),
    ("IP address", "medium", "The last login was from {} at noon.", _ip),
    ("national identity number", "high", "Her number is {}, she said.", _ssn),
    ("street address", "medium", "They moved to {} in May.", _street),
    ("access key", "high", "aws_key = {}", _key),
    ("e-mail address", "medium", "<{}> wrote:", _mail),
    ("person's name", "low", "It was signed by Dr. {} last year.", _name),
    ("national identity number", "high", "CPF do titular: {}", _cpf),
    ("password", "high", 'password = "{}"', lambda draw: _letters(draw, _BASE64, 12)),
    ("telephone number", "medium", "Phone: {}", _phone),
    ("private key", "high", "{}", _private_key),
    ("date of birth", "low", "She was born on {} in Turin.", _born),
    ("passport", "high", "Passport no. {}", lambda draw: "C" + _digits(draw, 8)),
    ("password", "high", "git clone https://deploy:{}@code.acme-widgets.com/app.git",
     lambda draw: _letters(draw, _BASE64, 16)),
)  # fmt: skip


def _wrong_card(draw: random.Random) -> str:
    return _card(draw, right=False)


def _wrong_iban(draw: random.Random) -> str:
    return _iban(draw, right=False)


def _example_mail(draw: random.Random) -> str:
    return f"{draw.choice(_NAMES)}@example.com"


def _fiction_phone(draw: random.Random) -> str:
    return f"{draw.randrange(200, 990)}-555-01{_digits(draw, 2)}"


def _private_ip(draw: random.Random) -> str:
    return f"192.168.{draw.randrange(256)}.{draw.randrange(1, 255)}"


def _version(draw: random.Random) -> str:
    return f"10{draw.randrange(10)}.{_digits(draw, 2)}.{draw.randrange(100, 255)}.7"


def _wrong_ssn(draw: random.Random) -> str:
    return f"000-{_digits(draw, 2)}-{_digits(draw, 4)}"


def _chapter(draw: random.Random) -> str:
    return f"{draw.randrange(2, 40)} The Old Way"


def _commit(draw: random.Random) -> str:
    return _letters(draw, "0123456789abcdef", 40)


def _build(draw: random.Random) -> str:
    return f"2026{_digits(draw, 4)}-{_digits(draw, 6)}"


def _amount(draw: random.Random) -> str:
    return f"+{_digits(draw, 7)}.{_digits(draw, 1)}"


_DECOYS: Sequence[_Made] = (
    ("payment card", "", "Order {} was shipped.", _wrong_card),
    ("e-mail address", "", "Write to someone like {}.", _example_mail),
    ("telephone number", "", "In the film he dials {}.", _fiction_phone),
    ("bank account (IBAN)", "", "The code {} is refused.", _wrong_iban),
    ("IP address", "", "It listens on {} only.", _private_ip),
    ("IP address", "", "Released as version {}.", _version),
    ("national identity number", "", "Part {} is out of stock.", _wrong_ssn),
    ("street address", "", "See chapter {}.", _chapter),
    ("access key", "", "The digest is {}.", _commit),
    ("e-mail address", "", "{}", _is("@functools.lru_cache(maxsize=None)")),
    ("national identity number", "", "The build {} passed.", _build),
    ("password", "", "password = {}", _is('"${DB_PASSWORD}"')),
    ("telephone number", "", "It is {} in all.", _amount),
    ("person's name", "", "Copyright (c) 2001 {}", _is("Python Software Foundation")),
    ("date of birth", "", "It was released on {}.", _born),
)
