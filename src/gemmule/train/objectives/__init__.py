"""What a training step minimizes, one objective a module."""
