"""Outputs to parameters: losses, optimizer, sharding, state and step are pure; the rest is the host's side."""
