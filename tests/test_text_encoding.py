import codecs

import pytest

from gemmule.text_encoding import BINARY, NOT_UTF8, NotTextError, decode, decoded, encoding_of

WESTERN = {
    "German": "Die Straße führt über die Brücke: „Schöne Grüße“ – sagt’s der Bär für 5 €.\n",
    "French": "L’été, à Noël, où l’œuvre créée coûte 12 € : «\xa0voilà\xa0» — c’est ça…\n",
    "Spanish": "¿Dónde está el niño? ¡Aquí, señor! 1º y 2ª página, 30 °C.\n",
    "Portuguese": "As nações não põem à mão os pães dos irmãos.\n",
    "Italian": "Perché no? È così, più là che qua; c'è già.\n",
    "Swedish": "Räksmörgås på ön är bättre än öl, å så var det.\n",
    "Danish": "Blåbærgrød på en ø, æbler og smørrebrød.\n",
    "Finnish": "Hyvää yötä, äiti: pöydällä on jäätelöä.\n",
    "Catalan": "El col·legi és molt lluny d’aquí.\n",
    "English": "“Don’t,” she said – and didn’t.\n",
}
OTHERS = {
    "Russian": ("cp1251", "Привет, мир! Это русский текст.\n"),
    "Russian, KOI8": ("koi8-r", "Привет, мир! Это русский текст.\n"),
    "Russian comments": ("cp1251", "int x = 0; // число в коде\n" * 3),
    "Polish": ("cp1250", "Zażółć gęślą jaźń, mówił chłopak.\n"),
    "Polish, ISO": ("iso8859-2", "Zażółć gęślą jaźń, mówił chłopak.\n"),
    "Czech": ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy.\n"),
    "Hungarian": ("cp1250", "Az őz és a tűz, jó időben.\n"),
    "Romanian": ("iso8859-2", "Ţara şi învăţătura, într-o zi.\n"),
    "Turkish": ("cp1254", "Çok güzel bir gün, değil mi? Işık ve şarkı.\n"),
    "Greek": ("cp1253", "Καλημέρα κόσμε, τι κάνεις;\n"),
    "Hebrew": ("cp1255", "שלום עולם\n"),
    "Arabic": ("cp1256", "مرحبا بالعالم\n"),
    "Thai": ("cp874", "สวัสดีชาวโลก\n"),
    "Lithuanian": ("cp1257", "Šiandien gražus oras, ačiū už žinią.\n"),
    "Chinese": ("gb18030", "你好，世界。这是一本书。\n"),
    "Chinese, Big5": ("big5", "你好，世界。這是一本書。\n"),
    "Japanese": ("shift_jis", "こんにちは世界。これは本です。\n"),
    "Korean": ("euc-kr", "안녕하세요 세계. 책입니다.\n"),
    "German, DOS": ("cp850", "Schöne Grüße über die Brücke.\n"),
    "German, Mac": ("mac-roman", "Schöne Grüße über die Brücke.\n"),
}


@pytest.mark.parametrize("language", WESTERN)
def test_western_european_text_of_windows_is_read(language):
    text = "A line of plain text before it.\n" + WESTERN[language]
    assert decode(text.encode("cp1252")) == (text, "cp1252")


@pytest.mark.parametrize("language", OTHERS)
def test_text_in_another_eight_bit_encoding_is_not_taken_for_it(language):
    codec, text = OTHERS[language]
    for data in (text.encode(codec), b"Some English before it.\n" * 5 + text.encode(codec)):
        with pytest.raises(NotTextError, match=NOT_UTF8):
            decode(data)


MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
TEXTS = ["plain\r\n", "Grüße 😀\n", "海は青い。\n" * 9, "", "\ufeffa second mark stays"]


@pytest.mark.parametrize("codec", MARKS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_byte_order_mark_decides(codec, text):
    data = MARKS[codec] + text.encode(codec)
    assert decode(data) == (text, codec)
    single = [bytes([byte]) for byte in data]
    assert "".join(decoded(single, codec)) == text


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_told_by_its_nul_bytes(codec):
    for text in ("plain text\r\n", "Grüße aus Köln\n", "第 1 章\n海は青い。\n"):
        assert decode(text.encode(codec)) == (text, codec)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\0b", BINARY),
        (b"\x01\0\x02\0\x03\0", BINARY),  # numbers of 16 bits
        (b"\0\0\0\1" * 40, BINARY),
        (b"latin \xe9 one", NOT_UTF8),  # one letter alone could be anything
        (b"caf\xe9 \x07", NOT_UTF8),
        (b"cut \xc3", NOT_UTF8),
        (bytes(range(1, 256)), NOT_UTF8),
        (codecs.BOM_UTF16_LE + b"a\0b", "damaged UTF-16"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8a\0", "damaged UTF-16"),
    ],
)
def test_what_cannot_be_told_says_why(data, reason):
    with pytest.raises(NotTextError) as e:
        decode(data)
    assert str(e.value) == reason


def test_blocks_change_nothing():
    text = "".join(WESTERN.values())
    utf16 = codecs.BOM_UTF16_BE + text.encode("utf-16-be")
    for data in (text.encode("cp1252"), text.encode(), utf16):
        whole = encoding_of(lambda data=data: [data])
        for size in (1, 7, 64):
            blocks = [data[i : i + size] for i in range(0, len(data), size)]
            assert encoding_of(lambda blocks=blocks: blocks) == whole
