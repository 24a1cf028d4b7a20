"""Floating-point operations that a training step needs, and the peak of the devices that are known.

Their quotient with the time is the model-FLOPs utilisation (Chowdhery et al. 2022, appendix B): useful work only, so padding and
recomputation do not count. Peaks are those of bf16, and so there is none of float32 compute.
"""

from jaxbert.config import ModelConfig

PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    # Google Cloud TPU documentation, "System architecture" page of each version, peak compute per chip (bf16).
    # Of v2 and v3, jax shows each of the two cores of a chip as a device.
    ("TPU v2", 45e12 / 2),
    ("TPU v3", 123e12 / 2),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    # NVIDIA data sheets, Tensor Core peak without sparsity: "H200", "H100", "A100", "L4" (bf16).
    ("NVIDIA H200", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA A100", 312e12),
    # Longer names first: the L40 is not an L4.
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L40", 181e12),
    ("NVIDIA L4", 121e12),
    # NVIDIA data sheets "T4" and "V100" (fp16: these have no bf16 units). The PCIe V100 is rated at 112.
    ("Tesla T4", 65e12),
    ("Tesla V100-PCIE", 112e12),
    ("Tesla V100", 125e12),
)
"""(start of jax's `device_kind`, dense operations per second in bf16); the first that matches counts."""


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Peak operations per second of one device in bf16; None where it is not known.

    Nor is it for other types: what float32 reaches depends on how XLA multiplies it, in one pass of bf16 (TPUs), in TF32 or in full.
    """
    if dtype != "bfloat16":
        return None
    return next((peak for start, peak in PEAK_FLOPS if device_kind.startswith(start)), None)


def model_flops(
    config: ModelConfig, *, tokens: float, attended_length: float, predictions: float, sequences: float
) -> float:
    """Operations of the matrix products of one training step, forward and backward (2 per multiply-add).

    Args:
      tokens: real tokens in the batch.
      attended_length: tokens that a token attends to on average: the row's length, or the sequence's in packed rows.
      predictions: masked positions that the MLM head predicts.
      sequences: sequences that the pooler and the NSP head see.
    """
    width, vocabulary = config.hidden_size, config.vocab_size or 0
    # Query, key, value and output projections, and the two feed-forward products.
    per_token = 4 * width * width + 2 * width * config.intermediate_size
    # Scores and weighted values.
    per_token += 2 * attended_length * width
    multiply_adds = config.num_layers * tokens * per_token
    embedding = config.embedding_width
    multiply_adds += predictions * (width * embedding + embedding * vocabulary)
    if embedding != width:
        multiply_adds += tokens * embedding * width
    multiply_adds += sequences * (width * width + 2 * width)
    # The backward pass makes two products, for inputs and for parameters, of each one in the forward pass.
    return 3 * 2 * multiply_adds
