"""Everything this package raises on purpose.

MorphlingError
├── InputError              the user gave something that cannot work: one clear line, exit status 2
│   ├── SpaceError          a knob, a configuration or a constraint breaks the rules of a space
│   ├── ExpressionError     an expression of an objective, a cost or a constraint cannot be read
│   └── SurfaceError        a folder of recorded surfaces is incomplete or contradicts itself
├── PriorError              a prior file is unreadable, or was learned for other metrics
└── StoreError              a run directory is unreadable, or belongs to something else

A configuration that fails is not an error: it is a `Measurement` with a reason (see measurement.py).
"""


class MorphlingError(Exception):
    """Root of this package's exceptions."""


class InputError(MorphlingError):
    """What the user asked for cannot work; the message is one line that says what to change."""


class SpaceError(InputError):
    """A knob, a configuration or a constraint breaks the rules of a search space."""


class ExpressionError(InputError):
    """An expression is not plain arithmetic, or names something unknown."""


class SurfaceError(InputError):
    """A folder of recorded surfaces is incomplete or contradicts itself."""


class PriorError(MorphlingError):
    """A prior file is unreadable, or was learned for other metrics."""


class StoreError(MorphlingError):
    """A run directory is unreadable, or belongs to something else."""
