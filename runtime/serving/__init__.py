"""Speech from many machines: one front, and processes elsewhere with an engine each.

``elsewhere.py`` is a scheduler that passes requests on and sends them again when a process dies, ``ray_app.py`` has Ray
Serve run the processes. ``triton_model.py`` is the service as a model of a Triton Inference Server.
"""
