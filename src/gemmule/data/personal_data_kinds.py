"""The kinds of personal data: a pattern, a check and a place for each.

Patterns find candidates; check digits, number ranges and reserved names decide.
"""

import functools
import importlib
import ipaddress
import re
from collections.abc import Callable
from typing import Any

from gemmule.data.personal_data_places import (
    HOUSE,
    IPV6,
    NINE_DIGITS,
    SIX_DIGITS,
    SIX_DIGITS_AND_LETTERS,
    Digits,
    Place,
    near,
)

Check = Callable[[re.Match[str]], bool]


@functools.cache
def _numbers(name: str) -> Any:
    return importlib.import_module(f"stdnum.{name}")


def _valid(*names: str) -> Check:
    """A check whether the match is valid as one of the library's kinds of number."""

    def check(match: re.Match[str]) -> bool:
        text = match[1] if match.re.groups else match[0]
        return any(_numbers(name).is_valid(text) for name in names)

    return check


# First digits and lengths that issuers use: check digits alone accept a tenth of all numbers.
_CARDS = re.compile(
    r"4(\d{12}|\d{15}|\d{18})|(5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(0[0-5]|[689]\d)\d{11}"
    r"|(6011|65\d\d|64[4-9]\d)\d{12}|35\d{14}|62\d{14,17}"
)


def _is_card(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match[0])
    return bool(_CARDS.fullmatch(digits)) and _numbers("luhn").is_valid(digits)


_NO_SECRET = re.compile(
    r"(?i)[*x.#?_-]+|.*(password|passwd|secret|passphrase|example|changeme|your|token|dummy|redacted"
    r"|placeholder|foobar|none|null|true|false).*|user|pass|pwd|test\w*|.*[<>{}()$%].*"
)


def _is_secret(match: re.Match[str]) -> bool:
    return not _NO_SECRET.fullmatch(match[1])


# RFC 2606 and RFC 6761 reserve these for examples.
_NO_DOMAIN = re.compile(
    r"(?i)(.*\.)?(example(\.(com|net|org|edu))?|(.*\.)?(test|invalid|localhost|local))"
)
_NO_SUFFIX = re.compile(r"(?i).*\.(py|c|h|js|png|jpe?g|gif|svg|css|html?|txt|so|dll)")


def _is_address(match: re.Match[str]) -> bool:
    domain = match[0].rpartition("@")[2]
    return not _NO_DOMAIN.fullmatch(domain) and not _NO_SUFFIX.fullmatch(domain)


def _is_telephone(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match[0])
    fiction = re.search(r"55501\d\d$", digits)  # numbers reserved for fiction
    decimal = re.search(r"\.\d$", match[0])
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2 and not fiction and not decimal


def _is_public_ip(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 12) : match.start()].lower()
    if re.search(r"(version|release|ver\.?|v|python|section|oid)\s*$", before):
        return False
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    # 7.1.4.34 is more often a chapter number.
    small = address.version == 4 and sum(part > 9 for part in address.packed) < 2
    return address.is_global and not address.is_multicast and not small


_NO_PERSON = re.compile(
    r"\b(Foundation|Inc|Ltd|LLC|Corp|Corporation|Company|GmbH|Software|University|Institute|Project"
    r"|Team|Group|Free|Python|Microsoft|Google|Apple|The|This|All|Regents|Research|Technologies"
    r"|Systems|Labs|Society|Committee|Center|Centre|Mathematisch|Centrum|National|Department|International"
    r"|Open|Source|License|Public|General|Digital|New|United|States|Creative|Works)\b"
)


def _is_person(match: re.Match[str]) -> bool:
    return not _NO_PERSON.search(match[1])


_NAME = (
    r"[A-Z][a-zß-ÿ'’-]+(?: [A-Z]\.)?(?: (?:van|von|de|der|la|di|bin))*(?: [A-Z][a-zß-ÿ'’-]+){1,2}"
)
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_DATE = (
    r"(?:\d{4}-\d{2}-\d{2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)? {_MONTH},? \d{{4}}|{_MONTH} \d{{1,2}},? \d{{4}})"
)
_STREETS = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Boulevard|Blvd|Court|Square|Way|Place|Terrace|Row"
)
# Plain digits count if the number's name precedes them.
_NAMED = (
    (r"SSN|[Ss]ocial [Ss]ecurity(?: [Nn]umber)?", r"\d{9}", ("us.ssn",)),
    (r"NHS", r"\d{3} ?\d{3} ?\d{4}", ("gb.nhs",)),
    (r"[Ss]teuer-?(?:ID|nummer|identifikationsnummer)|IdNr", r"\d{2}[ \d]{9,12}", ("de.idnr",)),
    (r"NIR|INSEE|[Ss]écurité [Ss]ociale", r"[12][ \d]{14,20}", ("fr.nir",)),
    (r"BSN|[Bb]urgerservicenummer", r"\d{9}", ("nl.bsn",)),
    (r"PESEL", r"\d{11}", ("pl.pesel",)),
    (r"SIN|[Ss]ocial [Ii]nsurance(?: [Nn]umber)?", r"\d{3}[ -]?\d{3}[ -]?\d{3}", ("ca.sin",)),
    (r"TFN|[Tt]ax [Ff]ile(?: [Nn]umber)?", r"\d{3} ?\d{3} ?\d{3}", ("au.tfn",)),
    (r"CPF", r"\d{11}", ("br.cpf",)),
    (r"DNI|NIF|NIE", r"(?:\d{8}|[XYZ]\d{7})[A-Z]", ("es.dni", "es.nie")),
    (r"T\.?C\.? ?[Kk]imlik", r"\d{11}", ("tr.tckimlik",)),
)

_Kind = tuple[str, str, re.Pattern[str], Check | None, Place]


def _kind(
    name: str, severity: str, pattern: str, check: Check | None = None, place: Place = NINE_DIGITS
) -> _Kind:
    return name, severity, re.compile(pattern), check, place


# What the patterns cannot match without, besides digits.
_NUMBER_NAMED = Digits(
    ("six",), 60, 8,
    ("ssn", "social", "nhs", "steuer", "idnr", "nir", "insee", "bsn", "burgerservice", "pesel",
     "sin", "tfn", "tax file", "cpf", "dni", "nif", "nie", "kimlik"),
)  # fmt: skip
_PASSPORT = Digits(("six",), 24, 8, ("passport",))
_CALL = Digits(("six",), 24, 8, ("tel", "phone", "mobile", "fax", "call"))
# The same of those without digits. Where the end of a token matters, it is within the window.
_BEGIN_KEY = near("-----BEGIN ", before=0, after=20_000)
_ACCESS = near(
    r"AKIA", r"ASIA", r"gh[pousr]_", r"github_pat_", r"xox[abprs]-", r"AIza", r"sk_live_",
    r"rk_live_", r"hf_(?<!\whf_)", r"sk-(?<!\wsk-)", r"eyJ(?<!\weyJ)", before=0, after=20_000,
)  # fmt: skip
_ASSIGNED = near(
    "passw", "pwd", "secret", "api[_-]?key", "access[_-]?token", "auth[_-]?token",
    before=0, after=300, folded=True,
)  # fmt: skip
_LOGIN = near(r"://[^\s/:@\"']+:[^\s/@\"']+@", before=17, after=300)
_AT = near(r"@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2}", before=256, after=32)
_STRASSE = near(
    r"straße \d", r"strasse \d", r"str\. \d", r"platz \d", r"allee \d", r"gasse \d",
    before=60, after=8,
)  # fmt: skip
_TITLE = near("Mr", "Ms", "Miss", "Dr", "Prof", before=0, after=150)
_BYLINE = near(r"by,? [A-Z]", r"By,? [A-Z]", "uthor", "aintain", "opyright", before=1, after=250)
_BIRTH = near("born", "birth", "dob", r"d\.o\.b", before=8, after=60, folded=True)

_CARD, _BANK, _ID = "payment card", "bank account (IBAN)", "national identity number"
_KEY, _SECRET, _MAIL = "access key", "password", "e-mail address"
_PHONE, _IP, _STREET, _PERSON = "telephone number", "IP address", "street address", "person's name"

KINDS: tuple[_Kind, ...] = (
    _kind(_CARD, "high", r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)", _is_card),
    _kind(_BANK, "high", r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)",
          _valid("iban"), SIX_DIGITS_AND_LETTERS),
    *(
        _kind(_ID, "high", pattern, _valid(*kinds), place)
        for pattern, kinds, place in (
            (r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", ("us.ssn",), NINE_DIGITS),
            (r"(?<![\w.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\w)", ("br.cpf",), NINE_DIGITS),
            (r"(?<!\w)756\.\d{4}\.\d{4}\.\d{2}(?!\w)", ("ch.ssn",), NINE_DIGITS),
            (r"(?<![\w-])\d{6}[-+A]\d{3}[0-9A-Y](?!\w)",
             ("fi.hetu", "se.personnummer", "dk.cpr"), NINE_DIGITS),
            (r"(?<![\w-])\d{6}-\d{7}(?![\w-])", ("kr.rrn",), NINE_DIGITS),
            (r"(?<![\w-])\d{4} \d{4} \d{4}(?![\w-]| \d)", ("in_.aadhaar",), NINE_DIGITS),
            (r"(?<!\w)(?:\d{8}|[XYZ]-?\d{7})-[A-Z](?!\w)", ("es.dni", "es.nie"), SIX_DIGITS),
            (r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z](?!\w)",
             ("it.codicefiscale",), SIX_DIGITS_AND_LETTERS),
            (r"(?<!\w)[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d(?!\w)",
             ("mx.curp",), SIX_DIGITS_AND_LETTERS),
            (r"(?<!\w)[1-9]\d{16}[\dX](?!\w)", ("cn.ric",), NINE_DIGITS),
        )
    ),
    *(
        _kind(_ID, "high", rf"(?:{name})(?: (?:is|no|number|nr))?\.?[:# ]{{1,3}}({digits})(?!\w)",
              _valid(*kinds), _NUMBER_NAMED)
        for name, digits, kinds in _NAMED
    ),
    # British: only assigned letters, no check digit.
    _kind(_ID, "high",
          r"(?<!\w)([A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D])(?!\w)",
          None, SIX_DIGITS),
    _kind("passport", "high",
          r"(?i:passport)(?: (?:no|number|nr))?\.?[:# ]{1,3}([A-Z]{0,2}\d{6,9})(?!\w)",
          None, _PASSPORT),
    # With the key itself: up to its last line, or as long as there are lines of base64.
    _kind("private key", "high",
          r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
          r"(?:[^-]{0,16000}-----END (?:[A-Z]+ )*PRIVATE KEY-----|(?:\s+[A-Za-z0-9+/=]{20,})*)",
          None, _BEGIN_KEY),
    _kind(_KEY, "high",
          r"(?<!\w)(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}"
          r"|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{35}|[sr]k_live_[A-Za-z0-9]{16,}"
          r"|hf_[A-Za-z]{30,}|sk-[A-Za-z0-9_-]{32,}"
          r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})(?!\w)", None, _ACCESS),
    _kind(_SECRET, "high",
          r"(?i)\b(?:password|passwd|pwd|api[_-]?key|secret(?:[_-]?key)?|(?:access|auth)[_-]?token)"
          r"[\"']?\s*(?:=|:|=>)\s*[\"']([^\s\"']{6,64})[\"']", _is_secret, _ASSIGNED),
    _kind(_SECRET, "high",
          r"\b[a-z][a-z0-9+.-]{1,15}://[^\s/:@\"']+:([^\s/@\"']+)@[\w.-]+", _is_secret, _LOGIN),
    _kind(_MAIL, "medium",
          r"(?<![\w.+@-])[A-Za-z0-9][\w.+-]*@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}(?![\w@])",
          _is_address, _AT),
    _kind(_PHONE, "medium", r"(?<![\w.+-])\+[1-9]\d{0,2}(?:[ .()/-]{0,2}\d){7,13}(?![\w-])",
          _is_telephone, SIX_DIGITS),
    _kind(_PHONE, "medium",
          r"(?<![\w.+-])(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-.]\d{4}(?![\w-]|\.\d)",
          _is_telephone),
    _kind(_PHONE, "medium",
          r"(?i)\b(?:tel|phone|telephone|mobile|fax|telefon|call)\b\.?[: ]{1,3}"
          r"(0\d(?:[ .()/-]?\d){6,11}|[2-9]\d{2} [2-9]\d{2} \d{4})(?!\w)", _is_telephone,
          _CALL),
    _kind(_IP, "medium", r"(?<![\w.:-])\d{1,3}(?:\.\d{1,3}){3}(?![\w.-]*\w)", _is_public_ip,
          SIX_DIGITS),
    _kind(_IP, "medium",
          r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::{1,2}[0-9A-Fa-f]{1,4}){2,7}(?![\w:])", _is_public_ip,
          IPV6),
    _kind(_STREET, "medium",
          rf"(?<![\w.])\d{{1,5}}[A-Za-z]? (?!Th[ei]|In |On )"
          rf"(?:[A-Z][a-z'’-]+\.? ){{1,3}}(?:{_STREETS})(?![a-z])",
          None, HOUSE),
    _kind(_STREET, "medium",
          r"\b[A-ZÄÖÜ][a-zäöüß-]+(?:straße|strasse|str\.|platz|allee|gasse) \d{1,4}[a-z]?(?!\w)",
          None, _STRASSE),
    _kind(_PERSON, "low", rf"\b(?:Mrs?|Ms|Miss|Dr|Prof)\.? ({_NAME}|[A-Z][a-z]{{2,}})(?!\w)",
          _is_person, _TITLE),
    _kind(_PERSON, "low",
          r"(?:\b(?:[Bb]y|[Aa]uthors?:?|[Mm]aintainer:?|[Mm]aintained by)"
          r"|[Cc]opyright (?:\([Cc]\)|©)?(?: ?\d{4}(?:-\d{4})?,?)*(?: by)?)"
          rf",? ({_NAME})(?!\w)", _is_person, _BYLINE),
    _kind("date of birth", "low",
          r"(?i)\b(?:born(?: on| in)?|date of birth|birth ?da(?:te|y)|dob|d\.o\.b\.?)[: ]{1,3}"
          rf"({_DATE})", None, _BIRTH),
)  # fmt: skip
