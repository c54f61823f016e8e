"""`python -m edc`, for launchers: torchrun and accelerate."""

from edc.cli import main

main()
