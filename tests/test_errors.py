"""Errors and settings: one family, messages with the value, the limit and the remedy."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from tortoise_rt import errors
from tortoise_rt.config import ARGUMENTS, PRESETS, Settings, make_settings, replace
from tortoise_rt.defaults import check_settings
from tortoise_rt.errors import SettingsError, TortoiseError, suggest

BAD = [
    ({"temperature": 0}, "temperature is 0; it must be above 0 and at most 100 .*use greedy"),
    ({"temperature": float("nan")}, "temperature must be a number, not nan"),
    ({"temperature": 1e-40}, "temperature is 1e-40; it must be at least 1e-06"),
    ({"repetition_penalty": 5e-324}, "it must be at least 1e-06"),
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
    ({"cond_free": 1}, "cond_free must be true or false, not 1"),
    ({"greedy": [1]}, "greedy must be true or false"),
    ({"temperature": True}, "temperature must be a number, not True"),
    ({"temperature": "0.8"}, "temperature must be a number, not '0.8'"),
    ({"temperature": np.zeros(2)}, "temperature must be a number"),
    ({"top_k": 10**400}, "top_k must be an integer, not inf"),
    ({"top_k": np.float32(2)}, "top_k must be an integer"),
    ({"decoder": ["hifigan"]}, "unknown decoder"),
    ({"preset": ["fast"]}, "unknown preset"),
    ({"preset": ""}, "unknown preset"),
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


def test_settings_may_be_numpys() -> None:
    given = make_settings(
        temperature=np.float32(0.5),
        top_k=np.int64(2),
        k=np.uint8(3),
        greedy=np.bool_(True),
        max_mel_tokens=np.int32(9),
    )
    assert given == make_settings(temperature=0.5, top_k=2, k=3, greedy=True, max_mel_tokens=9)
    kinds = {
        type(value) for value in (given.ar.temperature, given.ar.top_k, given.candidates, given.ar.greedy)
    }
    assert kinds == {float, int, bool}


def test_settings_are_checked_without_an_engine() -> None:
    check_settings("fast", k=1000, temperature=None)  # samples may be the engine's to say
    for arguments in (
        {"top_p": 2},
        {"preset": "fst"},
        {"k": 3, "num_autoregressive_samples": 2},
        {"nope": 1},
    ):
        with pytest.raises(SettingsError):
            check_settings(**arguments)  # type: ignore[arg-type]


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


def test_presets_are_the_references_and_two_of_our_own() -> None:
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
        "turbo": (16, 10, False),
        "swift": (96, 20, True),
    }
    assert make_settings("swift").diffusion.cond_free_share == 0.75
    changed = {name for name in PRESETS if make_settings(name).diffusion.sampler != "ancestral"}
    assert changed == {"turbo", "swift"}
    assert make_settings("fast", diffusion_iterations=7).diffusion.iterations == 7


def test_every_argument_reaches_a_field() -> None:
    settings = make_settings()
    for part, attribute in ARGUMENTS.values():
        assert hasattr(getattr(settings, part) if part else settings, attribute)
    assert settings == Settings()
    assert replace(settings, k=2, temperature=0.5) == make_settings(k=2, temperature=0.5)
