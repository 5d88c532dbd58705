"""``python -m tortoise_rt`` is ``tortoise-rt``."""

from .cli import main

main(prog_name="tortoise-rt")
