"""safetensors files that are damaged or lie: one line each, and nothing is allocated on their word."""

import json
import pathlib
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxbert.weights.names import WeightsError
from jaxbert.weights.safetensors_file import open_file, write_file

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.ones((4,), np.float16),
    "empty": np.zeros((0, 3), np.float32),
}


def written(path: pathlib.Path, header: object, data: bytes = b"", length: int | None = None) -> pathlib.Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def refused(path: pathlib.Path) -> str:
    with pytest.raises(WeightsError) as caught:
        open_file(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "get the file again" in text
    assert text.isprintable()
    assert len(text) < 1000
    return text


def test_what_the_reference_writes_is_read(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    half = np.array([1.5, -2.25], jnp.bfloat16)
    write_file(path, ARRAYS | {"half": half})
    found = open_file(path)
    assert found.keys() == {*ARRAYS, "half"}
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].read(), array)
    np.testing.assert_array_equal(found["half"].read().astype(np.float32), [1.5, -2.25])


def test_what_is_written_the_reference_reads(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    write_file(path, ARRAYS)
    found = safetensors.numpy.load_file(path)
    assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in ARRAYS.items()}
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_truncation_is_seen(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    write_file(path, ARRAYS)
    whole = path.read_bytes()
    for size in (0, 4, 8, 20, len(whole) - 32, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(whole + b"\0")
    assert "describes" in refused(path)


def test_flipped_bits_of_the_header_change_nothing_unseen(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    write_file(path, {"first": ARRAYS["b"], "second": ARRAYS["b"]})
    whole = path.read_bytes()
    intact = {name: (tensor.shape, tensor.read().tobytes()) for name, tensor in open_file(path).items()}
    length = struct.unpack("<Q", whole[:8])[0]
    for bit in range(8 * (8 + length)):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            found = {name: (tensor.shape, tensor.read().tobytes()) for name, tensor in open_file(path).items()}
        except WeightsError:
            continue
        # Bits of names, which the name table refuses, and of what is no name, shape or place.
        assert found.keys() != intact.keys() or found == intact, bit


def test_a_header_that_claims_a_terabyte(tmp_path: pathlib.Path):
    assert "claims 1099511627776 bytes" in refused(written(tmp_path / "x.safetensors", {}, length=2**40))
    assert "claims" in refused(written(tmp_path / "x.safetensors", {}, length=2**64 - 1))
    huge = {"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    assert f"describes {2**40} bytes of data" in refused(written(tmp_path / "x.safetensors", huge, b"\0" * 64))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "no JSON object"),
        (b"{" + b'"a":{' * 50_000, "not JSON"),
        (b'{"a":1,"a":2}', "stands there twice"),
        ({"a": 1}, "not described by"),
        ({"__metadata__": 1}, "__metadata__"),
        ({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, "has the type 'F31'"),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, "has the type"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "takes 4 bytes"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "no lists of whole numbers"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "no lists of whole numbers"),
        ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "no lists of whole numbers"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "takes -4 bytes"),
        ({"a": {"dtype": "F32", "shape": [9**9] * 120_000, "data_offsets": [0, 4]}}, "'a' has 120000 axes, of 8"),
        ({"a": {"dtype": "F32", "shape": [2**63], "data_offsets": [0, 4]}}, "no lists of whole numbers"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, "and 3 data_offsets, of 2"),
        ({"a\nb\x1b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, r"a\nb\x1b begins"),
        ({"a" * 10**5: {"dtype": "F" * 10**5, "shape": [1], "data_offsets": [4, 8]}}, "has the type 'FFF"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "begins at byte 4"),
        (
            {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
            "begins at byte 0 of the data and not at 4",
        ),
    ],
)
def test_headers_that_contradict_themselves(tmp_path: pathlib.Path, header: object, message: str):
    assert message in refused(written(tmp_path / "x.safetensors", header, b"\0" * 8))


def test_integers_are_no_weights(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    write_file(path, {"a": np.arange(3)})
    tensor = open_file(path)["a"]
    with pytest.raises(WeightsError, match="a has the type I64, and weights are F32, F16, BF16"):
        tensor.read()
