"""`python -m edc`, for launchers: torchrun and accelerate."""

from edc.cli.main import main

main()
