"""What several rooms know of NVIDIA's driver and its messages."""
