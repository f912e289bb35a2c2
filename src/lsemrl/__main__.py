"""python -m lsemrl."""

from lsemrl.cli.main import main

main()
