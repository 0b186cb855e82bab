"""`python -m tgi`."""

from tgi.cli import main

main()
