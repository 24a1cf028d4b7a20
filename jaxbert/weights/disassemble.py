"""Our parameter tree -> named arrays in torch's layout, for every kind of file that is written."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxbert.weights.assemble import Types
from jaxbert.weights.names import BASE, DECODER, MLM_BIAS, Parameter, WeightsError, without_base
from jaxbert.weights.tree import SPARE_BIAS, Layout, from_tree


def exported(
    params: Mapping[str, Any],
    layout: Layout,
    groups: Sequence[str],
    carried: Mapping[str, np.ndarray] | None = None,
) -> Iterator[tuple[Parameter, Float[np.ndarray, "..."]]]:
    """The parameters of a model, each with its float32 array in torch's layout.

    Args:
      groups: which of them; the encoder is always one.
      carried: as in `Assembled`; without it the unused rows are 0.

    Raises WeightsError for a parameter that is missing, unexpected, of another shape, or not finite, and for a group without
    names.
    """
    arrays = from_tree(params, layout.config)
    wanted = layout.parameters(("encoder", *groups))
    unexpected = sorted(
        path for path in arrays.keys() - {p.path for p in wanted} if path.split("/", 1)[0] in ("encoder", *groups)
    )
    if unexpected:
        raise WeightsError(
            f"the configuration has no {unexpected[0]}: export with the configuration that the parameters were made with"
        )
    for parameter in wanted:
        if parameter.torch is None:
            raise WeightsError(
                f"{layout.family} models have no {parameter.path} in other systems: choose another class"
            )
        if parameter.path not in arrays:
            raise WeightsError(
                f"the parameters have no {parameter.path}: load them with fresh={(parameter.group,)} to start with new ones"
            )
        array = arrays[parameter.path]
        if array.shape != parameter.shape:
            raise WeightsError(
                f"{parameter.path} is {list(array.shape)} and the configuration says {list(parameter.shape)}: "
                "export with the configuration that the parameters were made with"
            )
        array = parameter.to_torch(array.astype(np.float32, copy=False))
        if not np.isfinite(array).all():
            raise WeightsError(f"{parameter.path} is not finite: export an earlier checkpoint")
        if parameter.unused_rows:
            rows = (carried or {}).get(parameter.path)
            if rows is None:
                rows = np.zeros((parameter.unused_rows, *array.shape[1:]), np.float32)
            array = np.concatenate([rows, array])
        yield parameter, np.ascontiguousarray(array)


def disassemble(
    params: Mapping[str, Any],
    layout: Layout,
    groups: Sequence[str],
    carried: Mapping[str, np.ndarray] | None = None,
    base_alone: bool = False,
    dtype: Types = "float32",
) -> dict[str, Float[np.ndarray, "..."]]:
    """What `exported` gives, by torch name, and the second bias of a decoder that is not tied.

    Args:
      base_alone: names as the encoder's own class has them.
      dtype: what the arrays become; what a mapping has no path of stays float32.
    """

    def typed(array: np.ndarray, path: str) -> np.ndarray:
        return array.astype(jnp.dtype(dtype if isinstance(dtype, str) else dtype.get(path, "float32")), copy=False)

    named: dict[str, np.ndarray] = {}
    decoder_bias = f"{DECODER[BASE[layout.family]]}.bias"
    for parameter, array in exported(params, layout, groups, carried):
        assert parameter.torch is not None
        name = without_base(parameter.torch, layout.family) if base_alone else parameter.torch
        named[name] = typed(array, parameter.path)
        if parameter.path == MLM_BIAS and not layout.config.tie_word_embeddings:
            # transformers ties both or none, and computes with the decoder's.
            named[decoder_bias] = named[parameter.torch]
            spare = (carried or {}).get(SPARE_BIAS)
            if spare is not None and spare.shape == array.shape:
                named[parameter.torch] = typed(spare, SPARE_BIAS)
    return named
