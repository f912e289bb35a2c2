"""Stands in for `lsemrl` in tests of the runner: leaves what a verb would leave, or does what --fake.do says."""

import json
import os
import sys
import time
from pathlib import Path

if sys.argv[1] in ("tax", "judge"):
    with (Path(os.environ["FAKE_JOURNAL"])).open("a") as journal:
        journal.write(json.dumps({"verb": sys.argv[1], "words": sys.argv[1:]}) + "\n")
    print("broken" if "break" in sys.argv else "page.html")
    sys.exit("break" in sys.argv)
verb, options = sys.argv[1], dict(word[2:].split("=", 1) for word in sys.argv[2:] if "=" in word)
folder = Path(options.get("trainer.default_root_dir") or options["output"])
do = options.get("fake.do", "")
with (Path(os.environ["FAKE_JOURNAL"])).open("a") as journal:
    journal.write(json.dumps({"verb": verb, "folder": str(folder), "words": sys.argv[1:], "pid": os.getpid()}) + "\n")

left = sorted(folder.glob("version_*/checkpoints/step_5"))
version = left[-1].parents[1] if left else folder / f"version_{len(list(folder.glob('version_*')))}"
version.mkdir(parents=True, exist_ok=True)
if do == "fail":
    print("\n".join(f"line {number}" for number in range(100)))
    sys.exit(3)
if do in ("hang", "hang_stubbornly") and not left:
    if do == "hang_stubbornly":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (version / "checkpoints" / "step_5").mkdir(parents=True)
    time.sleep(60)
if do.startswith("wait_for "):
    other, end = Path(do.removeprefix("wait_for ")), time.monotonic() + 20
    while not other.exists():
        if time.monotonic() > end:
            sys.exit(4)
        time.sleep(0.02)
if verb == "fit" and do != "no_adapter":
    (version / "adapter").mkdir()
    (version / "adapter" / "adapter_config.json").write_text("{}")
if verb == "measure" and do != "nothing":
    (folder / "measurement.json").write_text("{}")
