"""One module per subject. Nothing here imports another check."""
