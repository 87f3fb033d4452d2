"""The ledger: what each activity on the way to a model cost, and how each figure is known.

ledger.jsonl lies in the folder that an activity wrote to and travels with it: a line for each
activity, also for those that failed, were stopped or killed. At its end an activity also copies the
lines of what it was made from, so that a model's ledger is whole wherever it goes. Lines have
identifiers; a line that is met twice counts once.
"""
