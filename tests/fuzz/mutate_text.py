"""Damage to text: what tokenizers and chat templates stumble over."""

import random

from mutate import Mutation

BITS = (
    "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<unused0>",
    "[@BOS@]", "<start_of_turn>model\n", "<end_of_turn>\n<start_of_turn>user\n", "</table>",
    "\u2581", "\u2581\u2581", "  ", " " * 40, "\n" * 40, "\t", "\r\n", "\0", "\ufeff",
    "\ufffd", "\uffff", "\U0010ffff", "\U000e0041", "\u202e", "\u200d", "\u0301" * 30, "\u2028",
    "\x85", "\x1c", "\xa0", "\u3000", "<0x0A>", "<0xFF>", "\ud800", "\udfff", "😈👩‍👩‍👧🇩🇪", "नमस्ते",
    "生活", "ﷺ", "İ", "ß", "ſ", "a" * 3000, "0123456789", "the sea", "\x1b[2J", "<start_of_turn",
    "end_of_turn>", "<" * 300,
)  # fmt: skip


def bits(rng: random.Random, data: bytes, other: bytes) -> bytes:
    added = "".join(rng.choice(BITS) for _ in range(rng.choice((1, 2, 5, 20))))
    at = rng.randrange(len(data) + 1)
    return data[:at] + added.encode(errors="surrogatepass") + data[at:]


def characters(rng: random.Random, data: bytes, other: bytes) -> bytes:
    top = rng.choice((0x80, 0x800, 0x3000, 0x10000, 0x110000))
    text = "".join(chr(rng.randrange(top)) for _ in range(rng.choice((1, 4, 40))))
    at = rng.randrange(len(data) + 1)
    return data[:at] + text.encode(errors="surrogatepass") + data[at:]


TEXT: tuple[Mutation, ...] = (bits, bits, characters)
