"""The C library: ``tortoise_rt.h`` is its manual, ``build.py`` compiles it, ``embedded.py`` is what it calls."""
