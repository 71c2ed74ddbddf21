"""CPU kernels and execution modes that are faster than Detectron2's at the same results."""
