"""Raw text to rows of token ids, with numpy and tokenizers: never jax, never tensorflow."""
