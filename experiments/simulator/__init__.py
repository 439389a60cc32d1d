"""A mechanistic simulator of the paper's serving spaces. What it gives is computed, not measured, and says so.

`profile` counts the operators of a model and `cards` holds what processors can do; `physics` makes of both the time of
a batch and the peak of a configuration, `spaces` the surfaces.
"""
