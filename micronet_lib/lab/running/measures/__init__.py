"""Measures: the contents of a record besides the score. A `Sweep` names those that it wants."""

from micronet_lib.lab.running.measures import (
    adjustable_quantization,
    compression,
    corruptions,
    early_exit,
    label_smoothing,
    perturbations,
    ratings,
    retrieval,
    ternary,
    weights,
)
from micronet_lib.lab.running.measures.found import Measure

MEASURES = {
    "accuracy": Measure(ratings.accuracy, on_test=True),
    "confusions": Measure(ratings.confusions, on_test=True),
    "same_logits": Measure(ratings.same_logits, on_test=True),
    "half_precision": Measure(ratings.half_precision, on_test=True),
    "compression": Measure(compression.compression, on_test=True, check=compression.check),
    "corruptions": Measure(corruptions.corruptions, on_test=True, on_device=True),
    "perturbations": Measure(perturbations.perturbations, on_test=True, on_device=True),
    "retrieval": Measure(
        retrieval.retrieval,
        on_test=True,
        on_device=True,
        of_untrained=True,
        check=retrieval.check,
    ),
    "early_exit": Measure(early_exit.early_exit, on_test=True, check=early_exit.check),
    "ternary": Measure(ternary.ternary, on_test=True, check=ternary.check),
    "adjustable_quantization": Measure(
        adjustable_quantization.adjustable_quantization,
        on_test=True,
        check=adjustable_quantization.check,
    ),
    "class_similarity": Measure(weights.similarity),
    "matrix_agreement": Measure(label_smoothing.matrix_agreement),
    "spectrum": Measure(weights.spectra),
    "sparsity": Measure(weights.sparsity),
    "bill": Measure(weights.bill),
}
"""Measures by name, for `Sweep.measures`."""
