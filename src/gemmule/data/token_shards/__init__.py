"""Tokens as other programs store them: datatrove's .ds, and the raw .npy of OLMo and dolma."""
