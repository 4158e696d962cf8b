"""hostprep: inspect and prepare a Linux host before it joins a cluster."""

__version__ = "0.1.0"
