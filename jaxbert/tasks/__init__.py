"""One file a task: its examples, head, loss terms, metrics and decoding; pretraining is one of them."""
