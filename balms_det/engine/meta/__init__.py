"""Learning the class rates of the Meta Sampler and the Meta Reweighter while training."""

from balms_det.engine.meta.build import build_meta_learning, features_are_frozen
from balms_det.engine.meta.hook import MetaLearning, plot_rates
from balms_det.engine.meta.meta_sets import FeatureBank, ForwardPass
from balms_det.engine.meta.rates import ReweighterRates, SamplerRates
from balms_det.engine.meta.recorder import HeadRecord, Recorder

__all__ = [
    "FeatureBank",
    "ForwardPass",
    "HeadRecord",
    "MetaLearning",
    "Recorder",
    "ReweighterRates",
    "SamplerRates",
    "build_meta_learning",
    "features_are_frozen",
    "plot_rates",
]
