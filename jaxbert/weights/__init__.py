"""Other systems' checkpoints, in and out: Hugging Face folders, Google's TensorFlow checkpoints, Flax files of transformers 4."""
