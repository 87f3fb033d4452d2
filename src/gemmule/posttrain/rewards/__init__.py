"""Rewards: functions of an answer and its prompt's record. Free of torch."""
