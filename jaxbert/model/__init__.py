"""BERT as Flax linen modules: a batch of token ids in, hidden states and logits out."""
