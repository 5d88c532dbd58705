"""Errors and settings: one family, messages with the value, the limit and the remedy."""

from __future__ import annotations

import inspect

import pytest

from tortoise_rt import errors
from tortoise_rt.config import ARGUMENTS, PRESETS, Settings, make_settings, replace
from tortoise_rt.errors import SettingsError, TortoiseError, suggest

BAD = [
    ({"temperature": 0}, "temperature is 0; it must be above 0 and at most 100 .*use greedy"),
    ({"temperature": float("nan")}, "temperature must be a number, not nan"),
    ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
    ({"top_p": 1.5}, r"top_p is 1\.5; it must be above 0 and at most 1"),
    ({"top_k": -1}, "top_k is -1; it must be at least 0"),
    ({"top_k": 2.5}, r"top_k must be an integer, not 2\.5"),
    ({"repetition_penalty": -1}, "repetition_penalty is -1"),
    ({"typical_mass": 2}, "typical_mass is 2"),
    ({"num_autoregressive_samples": 0}, "samples is 0; it must be at least 1"),
    ({"num_autoregressive_samples": 10**6}, "samples is 1e\\+06; .*at most 4096"),
    ({"max_mel_tokens": 0}, "max_mel_tokens is 0"),
    ({"diffusion_iterations": 4001}, "diffusion_iterations is 4001; .*at most 4000"),
    ({"diffusion_temperature": 1.1}, r"diffusion_temperature is 1\.1"),
    ({"cond_free_k": -1}, "cond_free_k is -1"),
    ({"cond_free": "False"}, "cond_free must be true or false, not 'False'"),
    ({"cvvp_amount": 2}, "cvvp_amount is 2"),
    ({"k": 3, "num_autoregressive_samples": 2}, "3 candidates of 2 samples: draw at least"),
    ({"decoder": "hifi"}, "unknown decoder 'hifi'. Did you mean \"hifigan\""),
    ({"sampler": "dpm"}, "unknown sampler 'dpm'"),
    ({"temprature": 1}, "unknown setting 'temprature'. Did you mean \"temperature\""),
    ({"preset": "fsat"}, "unknown preset 'fsat'. Did you mean"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda x: next(iter(x)) if isinstance(x, dict) else ""
)
def test_settings_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_settings(**arguments)  # type: ignore[arg-type]


def test_errors_are_one_family_drawn_in_the_docstring() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    for error in classes:
        assert issubclass(error, TortoiseError)
        assert error.__name__ in (errors.__doc__ or "")
        assert error.__doc__
    assert issubclass(errors.InputError, ValueError)


def test_suggestions() -> None:
    assert suggest("emna", ["emma", "tom"]) == 'Did you mean "emma"? Available: emma, tom.'
    assert suggest("x", ["emma", "tom"]) == "Available: emma, tom."
    assert suggest("x", []) == "None are available."
    assert suggest("x", [f"voice{i:02}" for i in range(30)]).endswith("voice19, ....")


def test_presets_are_the_references() -> None:
    seen = {
        name: (s.ar.samples, s.diffusion.iterations, s.diffusion.cond_free)
        for name in PRESETS
        for s in [make_settings(name)]
    }
    assert seen == {
        "ultra_fast": (16, 30, False),
        "fast": (96, 80, True),
        "standard": (256, 200, True),
        "high_quality": (256, 400, True),
    }
    assert make_settings("fast", diffusion_iterations=7).diffusion.iterations == 7


def test_every_argument_reaches_a_field() -> None:
    settings = make_settings()
    for part, attribute in ARGUMENTS.values():
        assert hasattr(getattr(settings, part) if part else settings, attribute)
    assert settings == Settings()
    assert replace(settings, k=2, temperature=0.5) == make_settings(k=2, temperature=0.5)
