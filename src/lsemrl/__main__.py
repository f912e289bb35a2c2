"""python -m lsemrl."""

from lsemrl.cli import main

main()
