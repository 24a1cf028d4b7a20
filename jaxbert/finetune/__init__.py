"""Labelled files -> a fine-tuned model, its report, and a folder that predicts."""
