"""Weights in eight or four bits, in forms whose rows stay independent: what a row computes never depends on its batch-mates.

On the CPU:

- ``int8`` and ``int4`` keep the matrices in blocks of ``BLOCK`` inputs, each with a scale of its own. ONNX Runtime's
  MatMulNBits multiplies them and rounds activations to eight bits in blocks of a row too. For decoding, where reading
  weights is what takes the time.
- ``int8row`` keeps one scale for each output. Activations are divided by the largest of their row and rounded with
  one constant scale, so that a plain eight-bit product serves all rows. For large products, where arithmetic is what
  takes the time. Without the VNNI instructions, the products of two neighbouring inputs are added up in sixteen bits,
  which could overflow; so a column's scale is the smallest with which no two neighbours can.

For GPUs ``int8`` and ``fp8`` keep one scale for each output, in half precision, by which weights are multiplied as they are
read: what is computed is computed in halves.
"""

from __future__ import annotations

import numpy as np

PRECISIONS = ("fp32", "int8", "int4", "int8row")
BLOCK = 32  #: consecutive inputs that share a scale
LARGEST = (
    127  #: steps from zero to the largest weight of a block of eight bits, or the largest activation of a row
)
LARGEST_PAIR = 127  #: of two neighbours of one sign; 128 after rounding, and 128 * 255 fits into sixteen bits
LEAST_SIZE = 4096  #: elements; smaller matrices stay as they are
LARGEST_OF_OUTPUT = {"int8": 127, "fp8": 448}  #: for GPUs, what the largest weight of an output becomes
INT8_ACCURACY = 4  #: MatMulNBits' ``accuracy_level`` that multiplies in eight bits

#: graphs that these apply to: those that are matrix products all through. The others stay fp32
QUANTIZED = (
    "ar_step",
    "clvp_text",
    "clvp_speech",
    "cvvp_voice",
    "cvvp_speech",
    "diffusion_align",
    "diffusion_condition",
    "diffusion_denoise",
)


def graph_precision(graph: str, precision: str) -> str:
    """What ``precision`` means for a graph."""
    return precision if graph in QUANTIZED else "fp32"


def quantizable(matrix: np.ndarray) -> bool:
    """Whether a matrix (in, out) is large enough for blocks to pay."""
    return matrix.ndim == 2 and matrix.size >= LEAST_SIZE and len(matrix) >= BLOCK


def zero_point(bits: int) -> int:
    """What stands for zero in a block."""
    return 1 << (bits - 1)


def quantize_blocks(matrix: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) float32 -> bytes (out, blocks, BLOCK * bits / 8) uint8 and scales (out, blocks) float32.

    A weight is (number - zero_point) * scale; inputs are padded to whole blocks with zeros. Eight bits are off by at
    most half a scale. Of four bits, two to a byte, the lower first, the weight of largest magnitude is the lowest
    number, so that all sixteen are used; at the other end weights are off by up to one scale.
    """
    inputs, outputs = matrix.shape
    padded = np.zeros((outputs, -(-inputs // BLOCK) * BLOCK), np.float32)
    padded[:, :inputs] = matrix.T
    blocks = padded.reshape(outputs, -1, BLOCK)
    zero = zero_point(bits)
    if bits == 8:
        scales = np.abs(blocks).max(2) / LARGEST
    else:
        largest = np.abs(blocks).argmax(2)[..., None]
        scales = np.take_along_axis(blocks, largest, 2)[..., 0] / -zero
    steps = np.rint(blocks / np.where(scales == 0, 1, scales)[..., None])
    numbers = np.clip(steps + zero, 0, 2 * zero - 1).astype(np.uint8)
    if bits == 4:
        numbers = numbers[..., ::2] | numbers[..., 1::2] << 4
    return numbers, scales.astype(np.float32)


def dequantize_blocks(packed: np.ndarray, scales: np.ndarray, inputs: int, bits: int = 8) -> np.ndarray:
    """The matrix (inputs, out) that blocks stand for."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    values = (packed.astype(np.float32) - zero_point(bits)) * scales[..., None]
    return values.reshape(len(packed), -1)[:, :inputs].T


def quantize_columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) float32 -> numbers (in, out) int8 and scales (out,) float32, whose product is the matrix."""
    even = matrix if len(matrix) % 2 == 0 else np.pad(matrix, ((0, 1), (0, 0)))
    pairs = even.reshape(-1, 2, matrix.shape[1])
    largest = np.maximum(np.maximum(pairs, 0).sum(1).max(0), np.maximum(-pairs, 0).sum(1).max(0))
    scales = (largest / LARGEST_PAIR).astype(np.float32)
    return np.rint(_in_steps(matrix, scales, LARGEST_PAIR)).astype(np.int8), scales


def quantize_outputs(matrix: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) float32 -> numbers (in, out) and scales (out,) float16, whose product is the matrix.

    precision: "int8", numbers are int8; "fp8", they are uint8, the bits of float8 (see ``as_float8``).
    """
    most = LARGEST_OF_OUTPUT[precision]
    exact = np.abs(matrix).max(0) / np.float32(most)
    scales = exact.astype(np.float16)
    scales = np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)  # none is cut off
    steps = _in_steps(matrix, scales.astype(np.float32), most)
    return np.rint(steps).astype(np.int8) if precision == "int8" else as_float8(steps), scales


def as_float8(array: np.ndarray) -> np.ndarray:
    """The bits of numbers within 448 rounded to float8, to the nearest and to even: uint8.

    Of the kind e4m3fn (Micikevicius et al. 2022, "FP8 formats for deep learning"): a sign, four bits of an exponent that
    is 7 too large, three of a fraction.
    """
    sizes = np.abs(array)
    exponents = np.frexp(np.maximum(sizes, 2.0**-6))[1] - 1  # below lie numbers without a leading one
    eighths = np.rint(np.ldexp(sizes, 3 - exponents)).astype(np.int32)
    return ((exponents + 6 << 3) + eighths | np.signbit(array) << 7).astype(np.uint8)


def _in_steps(matrix: np.ndarray, scales: np.ndarray, most: int) -> np.ndarray:
    """Each column divided by its scale, where that is not zero, within ``most``."""
    return np.clip(matrix / np.where(scales == 0, 1, scales), -most, most)
