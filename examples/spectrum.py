"""A FastAPI application without a model: it finds the loudest frequencies of a signal."""

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve

api = FastAPI()


class Signal(BaseModel):
    seconds: float
    seed: int = 0


@serve.deployment
@serve.ingress(api)
class Spectrum:
    @api.post("/loudest")
    def loudest(self, signal: Signal):
        samples = np.random.default_rng(signal.seed).normal(size=int(48_000 * signal.seconds))
        power = np.abs(np.fft.rfft(samples)) ** 2
        frequencies = np.fft.rfftfreq(len(samples), 1 / 48_000)
        return {"hz": sorted(frequencies[np.argsort(power)[-3:]].tolist())}


app = Spectrum.bind()
