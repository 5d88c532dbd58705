"""Arguments of Hugging Face's ``generate()``, which the reference passes on from ``tts()``: what each means here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import check_flag
from .errors import SettingsError

_BEAMS = (
    "samples are drawn one by one and the best is ranked, which beam search is not: "
    "raise num_autoregressive_samples (--samples)"
)
_LIMIT = "a clip's length is max_mel_tokens (--max-mel-tokens)"
_COUNT = "how often the text is drawn is num_autoregressive_samples (--samples), how many clips return is k (--candidates)"
_FILTER = "codes are filtered by temperature, top_k, top_p, typical_sampling and repetition_penalty only"
_OUTPUT = "what a run computed is written by debug_state=FOLDER (--debug-state)"

#: name -> (values that ask for nothing, why others are refused)
_NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), _BEAMS),
    "num_beam_groups": ((1,), _BEAMS),
    "diversity_penalty": ((0,), _BEAMS),
    "early_stopping": ((False,), _BEAMS),
    "penalty_alpha": ((0,), "contrastive search is not sampling: use temperature and top_k"),
    "typical_p": (
        (1,),
        "it is applied at another place than the reference's: typical_sampling=True, typical_mass=P",
    ),
    "max_length": ((), _LIMIT),
    "max_new_tokens": ((), _LIMIT),
    "min_length": ((0,), _LIMIT + ", and a clip ends where the network stops"),
    "min_new_tokens": ((0,), _LIMIT + ", and a clip ends where the network stops"),
    "max_time": ((), "the scheduler's submit() takes a deadline"),
    "num_return_sequences": ((), _COUNT),
    "epsilon_cutoff": ((0,), _FILTER),
    "eta_cutoff": ((0,), _FILTER),
    "no_repeat_ngram_size": ((0,), _FILTER),
    "encoder_no_repeat_ngram_size": ((0,), _FILTER),
    "encoder_repetition_penalty": ((1,), _FILTER),
    "exponential_decay_length_penalty": ((), _FILTER),
    "renormalize_logits": ((False,), _FILTER),
    "remove_invalid_values": ((False,), _FILTER),
    "guidance_scale": ((1,), "guidance is the diffusion decoder's: cond_free and cond_free_k"),
    "bad_words_ids": ((), _FILTER),
    "force_words_ids": ((), _FILTER),
    "suppress_tokens": ((), _FILTER),
    "logits_processor": ((), _FILTER),
    "stopping_criteria": ((), _FILTER),
    "input_tokens": ((), "a clip begins at its beginning: going on from given codes is not available"),
    "output_attentions": ((False,), _OUTPUT),
    "output_hidden_states": ((False,), _OUTPUT),
    "output_scores": ((False,), _OUTPUT),
    "return_dict_in_generate": ((False,), _OUTPUT),
    "use_cache": ((True, False), ""),  # the cache is always on, and changes no result
}


def settings_of_generate(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` without those of ``generate()`` that ask for nothing; ``do_sample`` becomes ``greedy``.

    Raises a SettingsError, with the reason, for those that ask for something there is not.
    """
    kept: dict[str, Any] = {}
    for name, value in arguments.items():
        if name == "do_sample":
            if value is not None:
                kept.setdefault("greedy", not check_flag(name, value))
        elif name in _NEUTRAL:
            neutral, reason = _NEUTRAL[name]
            if value is not None and not any(value == asks_nothing for asks_nothing in neutral):
                raise SettingsError(f"{name} is {value!r}, which has no meaning here: {reason}")
        else:
            kept[name] = value
    return kept
