"""The command line: which verb, with which settings."""

import sys

if sys.platform == "win32":
    raise SystemExit("lsemrl: error: runs are locked as Linux and macOS lock files; on Windows, install lsemrl in WSL")
