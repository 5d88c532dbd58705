"""Weights in eight bits: the matrices of the large matrix products in blocks, each with a scale of its own.

ONNX Runtime's MatMulNBits multiplies them; it rounds activations to eight bits in blocks of a row too, so that what a
row computes does not depend on its batch-mates. Smaller and faster where reading weights is what takes the time.
"""

from __future__ import annotations

import numpy as np

PRECISIONS = ("fp32", "int8")
BLOCK = 32  #: consecutive inputs that share a scale
ZERO = 128  #: what stands for zero in a byte
LARGEST = 127  #: steps from zero to the largest weight of a block
LEAST_SIZE = 4096  #: elements; smaller matrices stay as they are
INT8_ACCURACY = 4  #: MatMulNBits' ``accuracy_level`` that multiplies in eight bits

#: graphs that int8 applies to: those that are matrix products all through. The others stay fp32
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


def quantize_blocks(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) float32 -> bytes (out, blocks, BLOCK) uint8 and scales (out, blocks) float32.

    A weight is (byte - ZERO) * scale, off by at most half a scale; inputs are padded to whole blocks with zeros.
    """
    inputs, outputs = matrix.shape
    padded = np.zeros((outputs, -(-inputs // BLOCK) * BLOCK), np.float32)
    padded[:, :inputs] = matrix.T
    blocks = padded.reshape(outputs, -1, BLOCK)
    scales = np.abs(blocks).max(2) / LARGEST
    steps = np.rint(blocks / np.where(scales > 0, scales, 1)[..., None])
    return (steps + ZERO).astype(np.uint8), scales.astype(np.float32)


def dequantize_blocks(packed: np.ndarray, scales: np.ndarray, inputs: int) -> np.ndarray:
    """The matrix (inputs, out) that blocks stand for."""
    values = (packed.astype(np.float32) - ZERO) * scales[..., None]
    return values.reshape(len(packed), -1)[:, :inputs].T
