"""Labels: the id of the next token at each position, or IGNORED."""

IGNORED = -100  # a label that counts for nothing; torch's default ignore_index
