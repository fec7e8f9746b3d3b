"""Training material and training of the embedded model: drawn portraits, synthetic speech and the loops on top."""
