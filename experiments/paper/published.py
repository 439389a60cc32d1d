"""What the paper found, read off its figures (to about 2 % and 2 samples), by the names of this project's searchers.

Its Fine-Tuning is `finetune`, its Ernest `ernest`, its BO `bo` and its Google Vizier `vizier-transfer`. None where no
source has the number.
"""

from collections.abc import Mapping

Quality = tuple[float, float | None]
"""Share of the optimum over the test models: median, 10th percentile."""
Samples = tuple[float, float | None]
"""Samples to the optimum: median, 90th percentile."""

FIGURE_6A: Mapping[int, Mapping[str, Quality]] = {
    10: {
        "maml": (0.995, 0.87),
        "finetune": (0.71, 0.50),
        "vizier-transfer": (0.655, 0.40),
        "bo": (0.67, 0.53),
        "ernest": (0.465, 0.38),
    },
    30: {
        "maml": (1.0, 1.0),
        "finetune": (0.924, 0.76),
        "vizier-transfer": (0.845, 0.62),
        "bo": (0.85, 0.62),
        "ernest": (0.69, 0.50),
    },
    100: {
        "maml": (1.0, 1.0),
        "finetune": (1.0, 0.865),
        "vizier-transfer": (0.93, 0.72),
        "bo": (0.896, 0.74),
        "ernest": (0.76, 0.60),
    },
    200: {
        "maml": (1.0, 1.0),
        "finetune": (1.0, 0.983),
        "vizier-transfer": (1.0, 0.905),
        "bo": (1.0, 0.89),
        "ernest": (0.79, 0.615),
    },
}
FIGURE_6B: Mapping[float, Mapping[str, Samples]] = {
    0.7: {
        "maml": (10, None),
        "finetune": (18, None),
        "vizier-transfer": (22, None),
        "bo": (21, None),
        "ernest": (40, None),
    },
    0.9: {
        "maml": (12, None),
        "finetune": (34, None),
        "vizier-transfer": (64, None),
        "bo": (160, None),
        "ernest": (399, None),
    },
    1.0: {
        "maml": (18, 30),
        "finetune": (54, 250),
        "vizier-transfer": (168, None),
        "bo": (167, None),
        "ernest": (411, None),
    },
}
FIGURE_7: Mapping[str, Mapping[str, Samples]] = {
    "objective2": {
        "maml": (18, 35),
        "finetune": (50, None),
        "vizier-transfer": (242, None),
        "bo": (390, None),
        "ernest": (435, None),
    },
    "objective3": {
        "maml": (29.5, 49),
        "finetune": (55, None),
        "vizier-transfer": (211, None),
        "bo": (475, None),
        "ernest": (228, None),
    },
}
FIGURE_11A: Mapping[int, Mapping[str, Quality]] = {
    10: {
        "maml": (1.0, 0.94),
        "finetune": (1.0, 0.80),
        "vizier-transfer": (0.966, None),
        "bo": (0.88, 0.37),
        "ernest": (0.78, None),
    },
    20: {"maml": (1.0, 1.0), "bo": (0.94, None), "ernest": (0.91, None)},
}
FIGURE_11B: Mapping[float, Mapping[str, Samples]] = {
    1.0: {
        "maml": (9, None),
        "finetune": (13, None),
        "vizier-transfer": (19, None),
        "bo": (36, None),
        "ernest": (36.5, None),
    },
}
META_TRAINING_S = 600
"""Meta-training "usually" takes less, over thousands of iterations (section 6.2)."""
TRIAL_MINUTES = 10, 15
"""One trial: start the service and its client, find the peak, collect."""
