"""Run directories: their layout, the schema of their files, and what reports on a run while it goes on."""
