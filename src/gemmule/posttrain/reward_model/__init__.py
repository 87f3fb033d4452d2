"""Reward models: a Gemma body whose last hidden state is read as a score (Bradley-Terry)."""
