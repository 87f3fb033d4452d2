"""Run directories: their layout, the schema of their files, and the reporter that writes them."""
