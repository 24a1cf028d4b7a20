"""One file a task: its head, its loss terms and its metrics; pretraining is one of them."""
