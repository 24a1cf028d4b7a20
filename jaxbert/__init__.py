"""BERT in JAX: from raw text to a model that people use."""
