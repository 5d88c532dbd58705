"""Every option of the original's scripts has its row in the guide, and what the row names exists."""

from __future__ import annotations

import re
from typing import Any

from conftest import ROOT

from tortoise_rt.cli import main

#: every option of the scripts of tortoise-tts 3.0.0
SCRIPTS: dict[str, str] = {
    "do_tts.py": "text voice preset use_deepspeed kv_cache half output_path model_dir candidates seed produce_debug_state "
    "cvvp_amount",
    "read.py": "textfile voice output_path output_name preset regenerate candidates model_dir seed produce_debug_state "
    "use_deepspeed kv_cache half",
    "read_fast.py": "textfile voice output_path output_name preset regenerate model_dir seed use_deepspeed kv_cache half",
    "is_this_from_tortoise.py": "clip",
    "get_conditioning_latents.py": "voice output_path",
    "tortoise_tts.py": "voice voices-dir preset quiet list-voices play output output-dir candidates regenerate skip-existing "
    "produce-debug-state seed models-dir text-split disable-redaction device batch-size num-autoregressive-samples "
    "temperature length-penalty repetition-penalty top-p max-mel-tokens cvvp-amount diffusion-iterations cond-free "
    "cond-free-k diffusion-temperature",
}


def script_rows() -> list[tuple[set[str], set[str], str]]:
    """(scripts, their options, what the guide names for them) of each row of its table."""
    section = (ROOT / "GUIDE.md").read_text("utf-8").partition("## Programs written for the original\n")[2]
    rows = re.findall(r"^\| `(.+?)` \| (`--.+?) \| (.+?) \|$", section.partition("\n## ")[0], re.MULTILINE)
    return [
        (set(re.findall(r"\w+\.py", f"{scripts}")), set(re.findall(r"--([\w-]+)", options)), ours)
        for scripts, options, ours in rows
    ]


def test_every_option_of_the_scripts_has_its_row() -> None:
    named = {
        (script, option) for scripts, options, _ in script_rows() for script in scripts for option in options
    }
    wanted = {(script, option) for script, options in SCRIPTS.items() for option in options.split()}
    assert named == wanted


def test_every_option_that_is_named_exists() -> None:
    missing = []
    for _, _, ours in script_rows():
        for command in re.findall(r"`([^`]+)`", ours):
            words = command.split()
            if words[0] not in (*main.commands, "read"):
                missing.append(command)
                continue
            if words[0] not in main.commands:  # long form comes with its own command
                continue
            found: Any = main.commands[words[0]]
            if len(words) > 1 and words[1] in getattr(found, "commands", {}):
                found = found.commands[words[1]]
            known = {
                name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)
            }
            missing += [
                f"{command}: {word}"
                for word in words
                if word.startswith("-") and word != "-" and word not in known
            ]
    assert not missing
