"""Texts in, plain Python out: what everybody ends with who has a model."""
