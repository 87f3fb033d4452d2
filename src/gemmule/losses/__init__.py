"""Losses from hidden states and the head, and the plain versions they are compared with."""
