"""What a step of post-training minimizes."""
