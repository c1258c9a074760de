"""Runs docs/verify.py over each export of a folder (N.tar with N.json), and prints what it finds as lines of JSON."""
import json, pathlib, sys

sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
import verify

for export in sorted(pathlib.Path(sys.argv[2]).glob("*.tar*"), key=lambda path: int(path.name.split(".")[0])):
    trust = json.loads(export.with_name(export.name.split(".")[0] + ".json").read_text())
    print(json.dumps([export.name, verify.verify(export, trust).findings]), flush=True)
