"""The reference's modules by their own names and signatures: a program changes its imports and nothing else.

from tortoise_rt.compat.api import TextToSpeech
from tortoise_rt.compat.utils.audio import load_audio, load_voices
"""
