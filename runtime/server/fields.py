"""What a request may say: the fields of its JSON body, checked, and their schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import (
    ARGUMENTS,
    DECODERS,
    KV_POSITIONS,
    MAX_RETRIES,
    MAX_SAMPLES,
    PRESETS,
    SAMPLERS,
    SMALLEST,
    check_choice,
    check_flag,
    check_number,
)
from ..defaults import check_settings
from ..errors import InputError, SettingsError, TextError, suggest
from ..pipeline import check_seed
from ..reading import LONGEST_PAUSE, PAUSE
from ..rng import MAX_SEED
from ..spec import TRAINED_STEPS
from ..streaming import MOST_CODES, Chunks
from ..tts import chunks_of
from .encoding import FORMATS, WHOLE

QUICK, GOOD = "tortoise", "tortoise-hd"
#: name of a model -> what it is; the other names are those that OpenAI's clients have ready
MODELS: Mapping[str, str] = {
    QUICK: QUICK,
    GOOD: GOOD,
    "tts-1": QUICK,
    "tts-1-hd": GOOD,
    "gpt-4o-mini-tts": QUICK,
}
STREAM_FORMATS = ("audio", "sse")
SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 1.0, 86_400.0  #: seconds
MAX_VOICE = 4000  #: characters of a voice's name, or of several joined

Schema = dict[str, Any]


def number(low: float, high: float | None, default: Any, text: str, *, above: bool = False) -> Schema:
    bounds: Schema = {"exclusiveMinimum" if above else "minimum": low}
    if high is not None:
        bounds["maximum"] = high
    return {"type": "number", **bounds, **_described(default, text)}


def integer(low: int, high: int | None, default: Any, text: str) -> Schema:
    return {**number(low, high, default, text), "type": "integer"}


def choice(choices: Any, default: Any, text: str) -> Schema:
    return {"type": "string", "enum": [*choices], **_described(default, text)}


def flag(default: Any, text: str) -> Schema:
    return {"type": "boolean", **_described(default, text)}


def _described(default: Any, text: str) -> Schema:
    return {"description": text} if default is None else {"default": default, "description": text}


#: the settings of a synthesis, by their names in Python; what is left out is as the model and the engine have it
SETTINGS: Mapping[str, Schema] = {
    "num_autoregressive_samples": integer(1, MAX_SAMPLES, None, "Draws, the best of which is heard."),
    "temperature": number(SMALLEST, 100, None, "Variety of the speech; low is even."),
    "top_p": number(0, 1, None, "Draw from the most likely codes with this probability.", above=True),
    "top_k": integer(0, None, None, "Draw from so many most likely codes; 0: from all."),
    "repetition_penalty": number(SMALLEST, 100, None, "Above 1 discourages codes already used."),
    "length_penalty": {"type": "number", "description": "Accepted as in TorToiSe, without effect."},
    "typical_sampling": flag(None, "Locally typical sampling."),
    "typical_mass": number(0, 1, None, "Its probability.", above=True),
    "greedy": flag(None, "Always the most likely code."),
    "max_mel_tokens": integer(1, None, None, "Longest sentence in codes of 46 ms."),
    "batch_rows": integer(1, 1024, None, "Most of the draws made side by side; changes no result."),
    "kv_positions": choice(KV_POSITIONS, None, '"upstream" reproduces a fault of TorToiSe\'s cache.'),
    "diffusion_iterations": integer(1, TRAINED_STEPS, None, "Denoising steps."),
    "sampler": choice(SAMPLERS, None, "Denoising rule."),
    "eta": number(0, 1, None, "Noise of the sampler ddim."),
    "cond_free": flag(None, "Guidance: a second, unconditioned pass in every step."),
    "cond_free_k": number(0, 1000, None, "Strength of guidance."),
    "cond_free_share": number(0, 1, None, "Share of the steps, the last ones, that are guided."),
    "diffusion_temperature": number(0, 1, None, "Noise that diffusion starts from."),
    "decoder": choice(DECODERS, None, "From codes to sound: diffusion (best) or hifigan (fast)."),
    "cvvp_amount": number(0, 1, None, "Rank draws by likeness to the voice (1), to the text (0) or both."),
    "k": {**integer(1, 1, 1, "Clips returned: one."), "enum": [1]},
    "enable_redaction": flag(None, "Speak words in [brackets] and cut them out."),
    "check": flag(None, "Let an aligner check the clip and draw a bad one again; with split off."),
    "max_retries": integer(0, MAX_RETRIES, None, "How often that may be."),
}
#: fields of every request for speech
COMMON: Mapping[str, Schema] = {
    "model": choice(
        MODELS, QUICK, "tortoise: sound as early as can be. tortoise-hd: the engine's own preset."
    ),
    "voice": {
        "description": "A voice by name (GET /v1/audio/voices), several with weights (a:0.7&b:0.3), or random. "
        "Left out: the engine's own.",
        "oneOf": [
            {"type": "string", "minLength": 1, "maxLength": MAX_VOICE},
            {
                "type": "object",
                "properties": {"id": {"type": "string", "minLength": 1, "maxLength": MAX_VOICE}},
                "required": ["id"],
                "additionalProperties": False,
            },
        ],
    },
    "response_format": choice(FORMATS, "mp3", "pcm is 16-bit little-endian samples, one channel, 24 kHz."),
    "seed": integer(0, MAX_SEED, None, "Same seed, same sound. Left out: a fresh one, told in x-seed."),
    "preset": choice(PRESETS, None, "Settings by name; those named beside it win."),
    "pause": number(0, LONGEST_PAUSE, PAUSE, "Seconds of silence between sentences."),
    "stream_chunk_size": integer(0, MOST_CODES, None, "Codes that a piece waits for; 0: all of a sentence."),
    "first_chunk": integer(1, MOST_CODES, None, "Codes that the first piece waits for."),
    "timeout": number(
        SHORTEST_TIMEOUT,
        LONGEST_TIMEOUT,
        None,
        "Seconds after which the request is given up. Left out: the server's, and twice those of sound.",
    ),
    **SETTINGS,
}
#: fields of a request with its text
SPEECH: Mapping[str, Schema] = {
    "input": {"type": "string", "minLength": 1, "description": "The text, of any number of sentences."},
    "stream_format": choice(
        STREAM_FORMATS, "audio", "audio: the sound as it is made. sse: events with the sound in base64."
    ),
    "stream": flag(
        None,
        "Off: answer when all is said, with its length, and a complete header. Left out: on, but for flac.",
    ),
    "split": flag(True, "Off: the text is one clip, as tts() makes it, and not said sentence by sentence."),
    "speed": {**number(1, 1, 1, "Speech has the speed that the voice gives it: 1."), "enum": [1]},
    "instructions": {
        "type": "string",
        "maxLength": 0,
        "description": "Not followed: write how it is said before the text, in [brackets].",
    },
    **COMMON,
}


@dataclass(frozen=True)
class Wish:
    """A request for speech, its fields checked by themselves."""

    model: str = QUICK
    voice: str | None = None  #: None: the engine's own
    response_format: str = "mp3"
    seed: int | None = None
    preset: str | None = None
    pause: float = PAUSE
    chunks: Chunks | None = None
    timeout: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    sse: bool = False
    stream: bool = True
    split: bool = True


def parse_json(body: bytes | str, what: str = "the body") -> dict[str, Any]:
    """A JSON object; raises InputError for anything else."""
    try:
        found = json.loads(body)
    except (
        ValueError,
        RecursionError,
    ) as error:  # UnicodeDecodeError and numbers of 10,000 digits are ValueErrors
        raise InputError(f"{what} is no JSON ({str(error)[:200] or 'nested too deeply'})") from None
    if not isinstance(found, dict):
        raise InputError(f'{what} must be a JSON object, as {{"input": "Hello."}}')
    return found


def parse_speech(body: Mapping[str, Any], most_text: int) -> Wish:
    """A request with its text, of ``most_text`` characters at most. Raises InputError, which names the field."""
    return parse(body, SPEECH, most_text)


def parse_live(body: Mapping[str, Any]) -> Wish:
    """A request whose text is still to come."""
    return parse(body, COMMON, None)


def check_names(body: Mapping[str, Any], fields: Mapping[str, Schema]) -> None:
    for name in body:
        if name not in fields:
            raise SettingsError(f"unknown field {name[:80]!r}. {suggest(name[:80], fields)}")


def parse(body: Mapping[str, Any], fields: Mapping[str, Schema], most_text: int | None) -> Wish:
    check_names(body, fields)
    given = {name: value for name, value in body.items() if value is not None}
    model = given.get("model", QUICK)
    check_choice("model", model, MODELS)
    chosen = given.get("response_format", "mp3")
    check_choice("response_format", chosen, FORMATS)
    stream_format = given.get("stream_format", "audio")
    check_choice("stream_format", stream_format, STREAM_FORMATS)
    if (speed := given.get("speed", 1)) != 1 or isinstance(speed, bool):
        raise SettingsError(
            f"speed is {speed!r:.40}; it must be 1: speech has the speed that its voice gives it, so choose another voice"
        )
    if given.get("instructions", "") != "":
        raise SettingsError(
            "instructions are not followed: write how it is said before the text, in [brackets]"
        )
    check_number("k", given.get("k", 1), 1, 1, integer=True)
    sizes = given.get("stream_chunk_size"), given.get("first_chunk")
    timeout, seed = given.get("timeout"), given.get("seed")
    settings = {name: given[name] for name in ARGUMENTS if name in given and name != "k"}
    check_settings(given.get("preset"), **settings)
    wish = Wish(
        MODELS[model],
        _voice(given.get("voice")),
        chosen,
        None if seed is None else check_seed(seed),
        given.get("preset"),
        check_number("pause", given.get("pause", PAUSE), 0, LONGEST_PAUSE),
        None if sizes == (None, None) else chunks_of(*sizes),
        None if timeout is None else check_number("timeout", timeout, SHORTEST_TIMEOUT, LONGEST_TIMEOUT),
        settings,
        "" if most_text is None else _text(body.get("input"), most_text),
        stream_format == "sse",
        check_flag("stream", given.get("stream", most_text is None or chosen not in WHOLE)),
        check_flag("split", given.get("split", True)),
    )
    if settings.get("check") and wish.split:
        raise SettingsError("check needs a clip that is complete before it is heard: add split false")
    return wish


def _text(text: Any, most: int) -> str:
    if not isinstance(text, str):
        raise TextError(f"input must be a text, not {text!r:.40}")
    if len(text) > most:
        raise TextError(f"input has {len(text)} characters; the limit is {most}: split it, or use a job")
    try:
        text.encode()
    except UnicodeError:
        raise TextError(
            "input has half a surrogate pair in it, which is no character: send valid Unicode"
        ) from None
    if not text.strip():
        raise TextError("input is empty: there is nothing to say")
    return text.strip()


def _voice(voice: Any) -> str | None:
    if isinstance(voice, dict) and [*voice] == ["id"]:  # as OpenAI's API names voices of one's own
        voice = voice["id"]
    if voice is None:
        return None
    if not isinstance(voice, str) or not 0 < len(voice) <= MAX_VOICE:
        raise SettingsError(f'voice must be a name of up to {MAX_VOICE} characters, or {{"id": name}}')
    return voice
