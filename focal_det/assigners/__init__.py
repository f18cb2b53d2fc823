"""Which anchor answers for which object, as functions on tensors: torch alone."""
