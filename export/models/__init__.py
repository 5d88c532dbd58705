"""The networks of TorToiSe as torch modules, inference only, with the official state-dict keys.

Every module has ``from_weights(weights, config)``: dimensions are read from the tensors, ``config`` (the
network's section of a config.json beside the checkpoint, may be empty) supplies what tensors cannot tell.
"""
