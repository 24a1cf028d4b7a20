"""Model FLOPs against a count by hand, and which device has which peak."""

import pytest

from jaxbert.config import ModelConfig
from jaxbert.train.flops import model_flops, peak_flops


def test_model_flops_of_a_model_small_enough_to_count():
    config = ModelConfig(vocab_size=11, hidden_size=2, num_layers=3, num_heads=1, intermediate_size=5)
    # A layer and token: 4 projections of 2 x 2, 2 products of 2 x 5, 2 products with 7 tokens of width 2.
    layer = 4 * 4 + 2 * 10 + 2 * 7 * 2
    # A prediction: dense 2 x 2 and decoder 2 x 11. A sequence: pooler 2 x 2 and 2 x 2 logits.
    forward = 3 * 100 * layer + 15 * (4 + 22) + 4 * (4 + 4)
    flops = model_flops(config, tokens=100, attended_length=7, predictions=15, sequences=4)
    assert flops == 3 * 2 * forward


def test_base_needs_about_six_operations_for_each_parameter_and_token():
    flops = model_flops(ModelConfig(vocab_size=30522), tokens=1, attended_length=0, predictions=0, sequences=0)
    assert flops == pytest.approx(6 * 85e6, rel=0.01)


def test_peaks_go_by_the_longest_name():
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("TPU v5p", "bfloat16") == 459e12
    assert peak_flops("NVIDIA L40S", "bfloat16") == 362e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("cpu", "bfloat16") is None


def test_float32_is_not_measured_against_the_peak_of_bfloat16():
    assert peak_flops("TPU v5 lite", "float32") is None
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
