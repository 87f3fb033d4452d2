"""The output head and the losses computed with it in chunks, and plain versions for comparison."""
