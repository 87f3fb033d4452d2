"""Rewards: functions of an answer and its prompt's record, users' own included; free of torch."""
