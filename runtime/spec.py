"""What every backend must offer: the graphs, their inputs and outputs, and the constants of the model family.

``GRAPHS`` is the single source that the exporter, the load-time check, the engine's input check and the
random inputs of the parity report all read. Loops stay in the host; a graph is one step or one
whole-sequence network.

A dimension is an ``int``, a key of the model's ``dims`` (contains a dot, e.g. ``"ar.dim"``) or a free
name (``"rows"``) that must agree between the inputs of one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# --- constants of the model family (facts of the reference implementation, tortoise-tts 3.0.0) ---
CODE_RATE = 22050  #: sample rate of the autoregressive side, Hz
SAMPLE_RATE = 24000  #: sample rate of the produced audio, Hz
CODE_SAMPLES = 1024  #: samples at CODE_RATE per mel code
HOP = 256  #: samples per mel frame, both front ends and both vocoders
AR_MELS = 80  #: mel bands the autoregressive side and CVVP listen to
MELS = 100  #: mel bands of the diffusion decoder and the vocoder
CALM_TOKEN = 83  #: the code of digital silence
TAIL_TOKENS = (45, 45, 248)  #: codes that end the padded row (what the trained VQ-VAE gives for silence)
CALM_RUN = 8  #: codes of silence kept at the end
STOP_TEXT = 0  #: text id that ends a row; the tokenizer's [STOP]
MAX_TEXT_IDS = 398  #: ids and one pad stay below 400
TRAINED_STEPS = 4000  #: steps of the diffusion schedule the decoder was trained on
VOICE_SAMPLES = 132300  #: 6 s at CODE_RATE: what the autoregressive voice encoder hears of a clip
DIFFUSION_VOICE_SAMPLES = 102400  #: at SAMPLE_RATE: what the diffusion voice encoder hears of a clip
MEL_MIN, MEL_MAX = -11.512925148010254, 2.3143386840820312  #: log magnitudes that map to -1 and 1
SILENT_MEL = -11.5129  #: log magnitude of the frames put behind a mel before vocoding
VOCODER_PAD = 10  #: such frames
VOCODER_NOISE = 64  #: channels of the vocoder's noise
#: What aligners hear. The first is CTC's blank; the last parts words and is silence, too.
SYMBOLS = ("", "'", *"abcdefghijklmnopqrstuvwxyz", " ")
ALIGNER_STRIDE = 2  #: mel frames to one output of the small aligner
WAV2VEC2_RATE = 16000  #: sample rate that wav2vec2 hears, Hz


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and dimensions of a graph's input or output."""

    name: str
    dtype: str
    dims: tuple[str | int, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph: the network it belongs to and its inputs and outputs in order."""

    name: str
    network: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def stateful(self) -> bool:
        """Whether the graph reads and extends a key/value cache (beside the inputs listed here)."""
        return self.name == "ar_step"


def _f32(name: str, *dims: str | int) -> TensorSpec:
    return TensorSpec(name, "float32", dims)


def _i64(name: str, *dims: str | int) -> TensorSpec:
    return TensorSpec(name, "int64", dims)


def _graph(name: str, network: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> GraphSpec:
    return GraphSpec(name, network, tuple(inputs), tuple(outputs))


_ALL = (
    # Voice latent of each clip; several clips are averaged by the host.
    _graph(
        "ar_voice",
        "autoregressive",
        [_f32("mel", "clips", AR_MELS, "frames")],
        [_f32("latent", "clips", "ar.dim")],
    ),
    # Appends to a key/value cache: a voice (0 or 1), text ids (0 or more) and codes (1 or more) per row.
    # Prefill, decode and extend are this one graph, so that they share one copy of the weights.
    # Text sits at text positions 0, 1, ...; every code brings its own mel position.
    _graph(
        "ar_step",
        "autoregressive",
        [
            _f32("voice", "rows", "voices", "ar.dim"),
            _i64("text_ids", "rows", "text"),
            _i64("codes", "rows", "codes"),
            _i64("code_positions", "rows", "codes"),
        ],
        [
            _f32("logits", "rows", "ar.mel_codes"),  # after the last code
            _f32("latents", "rows", "codes", "ar.dim"),  # final norm of the hidden state at each code
        ],
    ),
    _graph(
        "clvp_text",
        "clvp",
        [_i64("text_ids", "rows", "text")],
        [_f32("latent", "rows", "clvp.latent_dim"), _f32("scale", 1)],  # scale = exp(temperature)
    ),
    _graph(
        "clvp_speech", "clvp", [_i64("codes", "rows", "codes")], [_f32("latent", "rows", "clvp.latent_dim")]
    ),
    _graph(
        "cvvp_voice",
        "cvvp",
        [_f32("mel", "clips", AR_MELS, "frames")],
        [_f32("latent", "clips", "cvvp.latent_dim"), _f32("scale", 1)],
    ),
    _graph(
        "cvvp_speech", "cvvp", [_i64("codes", "rows", "codes")], [_f32("latent", "rows", "cvvp.latent_dim")]
    ),
    # Mean over time of the contextual embedding of each clip; several clips are averaged by the host.
    _graph(
        "diffusion_voice",
        "diffusion",
        [_f32("mel", "clips", MELS, "frames")],
        [_f32("latent", "clips", "diffusion.voice_dim")],
    ),
    # Conditioning of the denoiser, frame by frame. frame_index[t] is the code that frame t belongs to.
    # "free" is the learned embedding that stands in for all of it in the conditioning-free branch.
    _graph(
        "diffusion_align",
        "diffusion",
        [
            _f32("latents", "rows", "codes", "diffusion.latent_dim"),
            _f32("voice", "rows", "diffusion.voice_dim"),
            _i64("frame_index", "frames"),
        ],
        [_f32("aligned", "rows", "frames", "diffusion.dim"), _f32("free", "diffusion.dim")],
    ),
    # The timestep integrator: independent of the noisy mel, so it can run ahead of the loop.
    _graph(
        "diffusion_condition",
        "diffusion",
        [_f32("aligned", "rows", "frames", "diffusion.dim"), _f32("timestep", "rows")],
        [_f32("condition", "rows", "frames", "diffusion.dim")],
    ),
    # One denoising step: predicted noise (MELS channels), then the variance's interpolation (MELS channels).
    _graph(
        "diffusion_denoise",
        "diffusion",
        [
            _f32("x", "rows", MELS, "frames"),
            _f32("condition", "rows", "frames", "diffusion.dim"),
            _f32("timestep", "rows"),
        ],
        [_f32("out", "rows", 2 * MELS, "frames")],
    ),
    # Log-magnitude mel and noise -> 24 kHz wav. The graph neither pads nor clamps.
    _graph(
        "univnet",
        "vocoder",
        [_f32("mel", "rows", MELS, "frames"), _f32("noise", "rows", VOCODER_NOISE, "frames")],
        [_f32("wav", "rows", "samples")],
    ),
    # Latents at 93.75 frames/s (the host interpolates) and the voice latent -> 24 kHz wav of the frames from the first
    # to before the last of "wanted"; those beside them are seen, but no more of them is computed than that takes.
    _graph(
        "hifigan",
        "hifigan",
        [
            _f32("latents", "rows", "hifigan.in_dim", "frames"),
            _f32("voice", "rows", "hifigan.voice_dim"),
            _i64("wanted", 2),
        ],
        [_f32("wav", "rows", "samples")],
    ),
    _graph(
        "rlg_auto",
        "rlg_auto",
        [_f32("noise", "rows", "rlg_auto.dim")],
        [_f32("latent", "rows", "rlg_auto.dim")],
    ),
    _graph(
        "rlg_diffuser",
        "rlg_diffuser",
        [_f32("noise", "rows", "rlg_diffuser.dim")],
        [_f32("latent", "rows", "rlg_diffuser.dim")],
    ),
    # Logits: [from TorToiSe, real].
    _graph("detector", "detector", [_f32("wav", "rows", 1, "samples")], [_f32("logits", "rows", 2)]),
    # Which of SYMBOLS is heard when: the small aligner's logits, of mels as the voice encoder hears them ...
    _graph(
        "aligner",
        "aligner",
        [_f32("mel", "rows", AR_MELS, "frames")],
        [_f32("logits", "rows", "outputs", len(SYMBOLS))],
    ),
    # ... and wav2vec2's log probabilities, of 16 kHz audio of mean 0 and variance 1, its own symbols summed up.
    _graph(
        "wav2vec2",
        "wav2vec2",
        [_f32("wav", "rows", "samples")],
        [_f32("logits", "rows", "outputs", len(SYMBOLS))],
    ),
)

GRAPHS: Mapping[str, GraphSpec] = {g.name: g for g in _ALL}

#: network -> the official checkpoint file it is loaded from
CHECKPOINT_FILES: Mapping[str, str] = {
    "autoregressive": "autoregressive.pth",
    "clvp": "clvp2.pth",
    "cvvp": "cvvp.pth",
    "diffusion": "diffusion_decoder.pth",
    "vocoder": "vocoder.pth",
    "hifigan": "hifidecoder.pth",
    "rlg_auto": "rlg_auto.pth",
    "rlg_diffuser": "rlg_diffuser.pth",
    "detector": "classifier.pth",
    "aligner": "aligner.pth",  # the project's own
    "wav2vec2": "wav2vec2/pytorch_model.bin",  # or model.safetensors; beside it config.json and vocab.json
}

#: what ``dims`` holds, per network; every value is an int
DIM_KEYS: Mapping[str, tuple[str, ...]] = {
    "autoregressive": (
        "ar.dim",
        "ar.layers",
        "ar.heads",
        "ar.mel_codes",  # size of the code vocabulary, start and stop included
        "ar.start_code",
        "ar.stop_code",
        "ar.mel_positions",  # rows of the mel position table
        "ar.text_positions",  # rows of the text position table
        "ar.text_ids",  # rows of the text embedding
        "ar.start_text",
    ),
    "clvp": ("clvp.latent_dim", "clvp.text_ids", "clvp.codes", "clvp.text_heads", "clvp.speech_heads"),
    "cvvp": ("cvvp.latent_dim", "cvvp.codes", "cvvp.heads"),
    "diffusion": (
        "diffusion.dim",
        "diffusion.latent_dim",
        "diffusion.voice_dim",
        "diffusion.layers",
        "diffusion.heads",
    ),
    "vocoder": ("vocoder.channels",),
    "hifigan": ("hifigan.in_dim", "hifigan.voice_dim"),
    "rlg_auto": ("rlg_auto.dim",),
    "rlg_diffuser": ("rlg_diffuser.dim",),
    "detector": (),
    "aligner": (),
    "wav2vec2": ("wav2vec2.stride",),  # samples to one output
}

Dims = Mapping[str, int]


def cache_names(dims: Dims) -> tuple[str, ...]:
    """The tensors of a key/value cache as ar_step takes them; what it gives is called the same, with "new_" before."""
    return tuple(f"{kind}_{layer}" for layer in range(dims["ar.layers"]) for kind in ("key", "value"))


def cache_capacity(dims: Dims) -> int:
    """Positions of a cache of fixed size: a voice, the longest text and the most codes, in whole blocks of 64."""
    return -(-(1 + dims["ar.text_positions"] + dims["ar.mel_positions"]) // 64) * 64


def codes_to_frames(codes: int) -> int:
    """Mel frames (24 kHz, hop 256) that ``codes`` mel codes last: codes * 4 * 24000 // 22050."""
    return codes * 4 * SAMPLE_RATE // CODE_RATE
