"""Run the command line with ``python -m proteinlm``."""

from proteinlm.cli.main import main

main()
