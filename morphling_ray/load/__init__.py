"""Load: when requests are sent, what a window of them showed, and the search for the peak rate.

Knows nothing of models, of Ray Tune or of search; only driver.py knows Ray.
"""
