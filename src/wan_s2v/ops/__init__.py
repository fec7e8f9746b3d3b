"""One file per operation the models use."""
