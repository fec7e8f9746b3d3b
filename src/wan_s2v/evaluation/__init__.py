"""How good a talking portrait is: lip sync, identity, colour, sharpness, seams, silence and length."""

from wan_s2v.evaluation.readers import Readers, load_readers
from wan_s2v.evaluation.report import Evaluation, evaluate_frames, evaluate_video
from wan_s2v.evaluation.track import Track, observe

__all__ = ["Evaluation", "Readers", "Track", "evaluate_frames", "evaluate_video", "load_readers", "observe"]
