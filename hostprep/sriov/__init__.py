"""SR-IOV virtual functions: who else makes them, who uses them, and what hostprep makes again at boot."""
