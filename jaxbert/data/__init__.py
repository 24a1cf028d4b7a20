"""Rows to batches: the order of an epoch, masked-LM masking, and the pretraining input as tf.data."""
