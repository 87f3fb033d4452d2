"""The words of the small text that tests train on."""

WORDS = [
    "the", "a", "sea", "ship", "captain", "said", "never", "wind", "old",
    "and", "of", "to", "under", "red", "sail", "harbour",
]  # fmt: skip
