"""Small models of different kinds, whose recorded surfaces the bundled prior is trained on. None of them is the demo.

Each is an application: `experiments.zoo.apps:mobile_cnn` and so on. Random weights: speed does not depend on them.
"""
