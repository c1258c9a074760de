#!/usr/bin/env python3
"""Verifies an export of Weir's records, offline:  verify.py EXPORT TRUST [--json] [--scope=all|origin|range|run]

A second verifier, written by itself: it needs Python 3.11, the package `cryptography`, and for .zst files the program `zstd`
(Python 3.14 needs none). docs/verification.md says what it proves. Exit codes: 0 clean, 1 findings, 2 wrong usage.
"""
import base64, hashlib, json, re, subprocess, sys, tarfile
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

sha = lambda b: hashlib.sha256(b).digest()
node = lambda l, r: sha(b"\x01" + l + r)
EMPTY, HEARTBEAT_US, DIGITS = sha(b""), 60_000_000, re.compile(r"0|[1-9][0-9]*")


class Wrong(Exception):
    """A kind of finding, and why."""


def b64(text): return base64.b64decode(text, validate=True)
def number(text, key=""):
    if not (text.startswith(key) and DIGITS.fullmatch(text[len(key):])): raise Wrong("altered", "not a number: " + text)
    return int(text[len(key):])
def hashes(text):
    raw = b64(text)
    return [raw[i:i + 32] for i in range(0, len(raw), 32)] if len(raw) % 32 == 0 else None
def key_of(vkey, name=None):
    own, _, raw = vkey.split("+", 2)
    raw, name = b64(raw), name or own
    return name, sha(name.encode() + b"\n" + raw)[:4], raw
def vkey_of(key): return f"{key[0]}+{key[1].hex()}+{base64.b64encode(key[2]).decode()}"


def signed(note, key):
    """The text of a signed note, if this key signed it (C2SP signed-note; algorithm 4 is cosignature/v1)."""
    at = note.find("\n\n\u2014 ")
    if at < 0 or not note.endswith("\n"): raise Wrong("altered", "not a signed note")
    text, found = note[:at + 1], None
    for line in note[at + 2:-1].split("\n"):
        try: _, name, sig = line.split(" "); sig = b64(sig)
        except ValueError: raise Wrong("altered", "not a signature: " + line)
        if name == key[0] and sig[:4] == key[1] and found is None: found = sig[4:]
    if found is None: raise Wrong("another_key", "no signature by " + key[0])
    message = text
    if key[2][0] == 4: message, found = f"cosignature/v1\ntime {int.from_bytes(found[:8])}\n{text}", found[8:]
    try: Ed25519PublicKey.from_public_bytes(key[2][1:]).verify(found, message.encode())
    except InvalidSignature: raise Wrong("altered", "a wrong signature by " + key[0])
    return text


def checkpoint(text):
    try: name, size, root, first, time, end = text.split("\n"); root = b64(root); log = name.split("/")
    except ValueError: raise Wrong("altered", "not a checkpoint")
    if end or len(root) != 32 or len(log) != 4: raise Wrong("altered", "not a checkpoint")
    first, size = number(first, "first_seq "), number(size)
    return dict(name=name, origin=log[2], epoch=number(log[3]), size=size, root=root, first=first, next=first + size,
                time=number(time, "time_us "))


class Tree:
    def __init__(self, size=0, nodes=()): self.size, self.nodes = size, list(nodes)
    def push(self, leaf):
        for _ in range((self.size ^ (self.size + 1)).bit_length() - 1): leaf = node(self.nodes.pop(), leaf)
        self.nodes.append(leaf); self.size += 1
    def root(self):
        if not self.nodes: return EMPTY
        out = self.nodes[-1]
        for left in reversed(self.nodes[:-1]): out = node(left, out)
        return out


class Log:
    def __init__(self, origin, pin, v):
        self.v, self.origin, self.pin, self.keys, self.stones, self.pending = v, origin, pin, {}, [], []
        self.name = pin["key"][0].rsplit("/", 1)[0] if pin else None
        self.epoch = self.current = self.last = self.jump = self.alive = None
        self.next, self.uncovered, self.time_us = (0 if v.whole else None), False, None
        if pin: self.pending = [dict(c, source=source) for source, c in pin["seen"]]
        else: self.find("unpinned", 0, 0, 0, "log")

    def find(self, kind, epoch, first, last, what, fault=True, why=""):
        self.v.find(kind, self.origin, epoch, first, last, what, fault, why)

    def key(self, k):
        old, self.keys[k["epoch"]] = self.keys.get(k["epoch"]), k
        if self.pin and k["epoch"] == self.pin["epoch"] and k["key"] != vkey_of(self.pin["key"]): self.find("another_key", k["epoch"], k["first_seq"], k["first_seq"], "key")
        if self.name is None and k["key"].split("/")[2:3] == [self.origin]: self.name = k["key"].split("+")[0].rsplit("/", 1)[0]
        if old and old["key"] != k["key"]: self.find("another_key", k["epoch"], k["first_seq"], k["first_seq"], "key")

    def tombstone(self, t):
        place, error = (t["epoch"], t["first_seq"], t["last_seq"]), Wrong("another_key", "no witness signed it")
        for key in self.v.witnesses:
            try:
                lines = signed(t["note"], key).split("\n")
                log = lines[1].rsplit("/", 2)
                good = lines[0] == "weir tombstone v1" and lines[2:5] == [f"first_seq {place[1]}", f"last_seq {place[2]}", "policy " + t["policy"]]
                if good and log[1:] == [self.origin, str(place[0])]: return self.stones.append((*place[1:], t["policy"]))
                return self.find("altered", *place, "tombstone")
            except Wrong as wrong:
                if wrong.args[0] != "another_key": error = wrong
        self.find(error.args[0], *place, "tombstone")

    def key_at(self, epoch):
        """The key of an epoch: from the pinned one on, by each statement of another that both keys signed."""
        if self.epoch: at, key = self.epoch["n"], self.epoch["key"]
        elif self.pin: at, key = self.pin["epoch"], self.pin["key"]
        else:
            at = min((e for e in self.keys if e <= epoch), default=None)
            key = key_of(self.keys[at]["key"]) if at is not None else None
        if key is None or self.name is None or epoch < at: return None
        for e in sorted(e for e in self.keys if at < e <= epoch):  # an epoch of which nothing came had the key of the one before
            k, to = self.keys[e], f"{self.name}/{e}"
            if k["rotation"]:
                try:
                    key = key_of(vkey_of(key), f"{self.name}/{e - 1}")
                    lines = signed(k["rotation"], key).split("\n")
                    new = key_of(lines[4])
                    signed(k["rotation"], new)
                    if lines[0] != "weir key rotation v1" or lines[1:3] != [key[0], to] or new[0] != to or vkey_of(new) != lines[4]: raise Wrong("another_key", "")
                    key = new
                except (Wrong, ValueError, IndexError): self.find("another_key", e, k["first_seq"], k["first_seq"], "key"); return None
            else: key = key_of(vkey_of(key), to)
            if k["key"] != vkey_of(key): self.find("another_key", e, k["first_seq"], k["first_seq"], "key")
        return key if epoch == at else key_of(vkey_of(key), f"{self.name}/{epoch}")

    def open(self, note, epoch):
        key = self.epoch["key"] if self.epoch and self.epoch["n"] == epoch else self.key_at(epoch)
        if key is None: raise Wrong("unpinned", "no key of this epoch")
        c = checkpoint(signed(note, key))
        if c["name"] != key[0]: raise Wrong("another_key", "of another log")
        return c

    def past(self, epoch): return self.epoch is not None and epoch < self.epoch["n"]

    def checkpoint(self, s):
        last = max(s["first_seq"] + s["size"] - 1, 0)
        at = (s["epoch"], last, last, "checkpoint")
        try: c = self.open(s["note"], s["epoch"])
        except Wrong as wrong: return self.find(wrong.args[0], *at, why=wrong.args[1])
        if (c["first"], c["size"], c["epoch"], [c["root"]]) != (s["first_seq"], s["size"], s["epoch"], hashes(s["root"])): return self.find("projection", *at)
        if not self.past(s["epoch"]): self.alive = max(self.alive or 0, c["time"])
        if self.v.witnesses and not any(cosigned(s["note"], key) for key in self.v.witnesses): return self.find("unwitnessed", *at)
        if self.past(s["epoch"]): return self.find("reordered", *at)
        if not self.enter(s["epoch"], c["first"]): return self.find("forked", *at)
        self.pending.append(dict(c, source="idle" if s["idle"] else "store"))

    def take_pending(self, epoch, size):
        due = [p for p in self.pending if (p["epoch"], p["size"]) <= (epoch, size)]
        self.pending = [p for p in self.pending if (p["epoch"], p["size"]) > (epoch, size)]
        return [p for p in due if p["epoch"] == epoch]

    def enter(self, epoch, first):
        if self.epoch and self.epoch["n"] == epoch: return self.epoch["first"] == first
        key = self.key_at(epoch)
        self.end_epoch(False)
        if epoch in self.keys and self.keys[epoch]["first_seq"] != first: self.find("projection", epoch, first, first, "key")
        expected, hole = (self.next if self.v.dense else None), None
        if expected is not None and expected < first: hole = (expected, first - 1)
        if expected is not None and expected > first: self.find("forked", epoch, first, expected - 1, "log")
        self.next = first if self.v.whole or expected is not None else None
        self.epoch = dict(n=epoch, first=first, key=key, tree=Tree() if self.next is not None else None, next=first, witnessed=0, hole=hole)
        return True

    def batch(self, b):
        n, first, last = place = (b["epoch"], b["first_seq"], b["last_seq"])
        c = None
        if self.past(n): return self.find("reordered", *place, "batch")
        try: c = self.open(b["note"], n)
        except Wrong as wrong: self.find(wrong.args[0], *place, "checkpoint", why=wrong.args[1])
        leaves = hashes(b["leaves"])
        if leaves is None or not 0 < len(leaves) <= 20_000 or len(leaves) != last - first + 1: return self.find("altered", *place, "batch")
        if not self.enter(n, c["first"] if c else b["epoch_first_seq"]): return self.find("forked", *place, "batch")
        if self.next is not None and first < self.next:
            cur = self.current
            fork = cur and (cur["epoch"], cur["first"], cur["last"]) == place and cur["leaves"] != leaves and c
            return self.find("forked" if fork else "doubled", n, first, min(last, self.next - 1), "batch")
        self.end_batch()
        if self.next is not None and self.next < first:
            if self.v.dense: self.find("deleted", n, self.next, first - 1, "batch")
            self.epoch["tree"] = None
        if c and c["next"] != last + 1: self.find("altered", *place, "batch"); c = None
        if c and (c["size"], c["first"], [c["root"]]) != (b["size"], b["epoch_first_seq"], hashes(b["root"])): self.find("projection", *place, "batch")
        size, nodes, after = first - self.epoch["first"], hashes(b["frontier"]), None
        if size < 0 or nodes is None or len(nodes) != size.bit_count(): self.find("altered", *place, "batch")
        else: after = self.grow(Tree(size, nodes), leaves, c, place)
        self.epoch["tree"], self.epoch["next"], self.next = after, last + 1, last + 1
        self.current = dict(epoch=n, first=first, last=last, leaves=leaves, seen=set(), only=b.get("only") if self.v.scope == "run" else None, late=-1)

    def grow(self, tree, leaves, c, place):
        known, end = self.epoch["tree"], tree.size + len(leaves)
        follows = known is None or (known.size, known.nodes) == (tree.size, tree.nodes)
        due, agree, differ = {}, [], []
        for p in self.take_pending(self.epoch["n"], end): due.setdefault(p["size"], []).append(p)
        def compare():
            for p in due.get(tree.size, []): (agree if p["root"] == tree.root() and p["first"] == self.epoch["first"] else differ).append(p)
        compare()
        for leaf in leaves: tree.push(leaf); compare()
        by_note = c is not None and c["root"] == tree.root()
        if c and not by_note: self.find("altered", *place, "batch")
        if not by_note and not any(p["size"] == end and p["source"] in ("store", "idle") for p in agree): return None
        if not follows: self.find("forked", *place, "batch")
        for p in differ: self.find("forked", place[0], p["next"] - 1, p["next"] - 1, "checkpoint")
        self.epoch["witnessed"] = max([self.epoch["witnessed"]] + [p["size"] for p in agree if p["source"] in ("store", "idle")])
        return tree

    def event(self, epoch, seq, leaf, raw):
        h, cur = sha(b"\x00" + raw), self.current
        if cur is None or not cur["first"] <= seq <= cur["last"]: return self.not_covered(epoch, seq, leaf, raw, h)
        n, again = cur["epoch"], seq in cur["seen"]
        if again: self.find("doubled", n, seq, seq, "event")
        elif seq < cur["late"]: self.find("reordered", n, seq, seq, "event")
        cur["seen"].add(seq); cur["late"] = max(seq, cur["late"])
        if h != cur["leaves"][seq - cur["first"]]: return self.find(self.stranger(seq, raw) or "altered", n, seq, seq, "event")
        if leaf != h: self.find("projection", n, seq, seq, "leaf_hash")
        if epoch != n: self.find("projection", n, seq, seq, "epoch")
        if again or not self.epoch["tree"]: return
        try: self.tells(seq, json.loads(raw))
        except (ValueError, TypeError, AttributeError): self.last = None

    def stranger(self, seq, raw):
        try: told = json.loads(raw, object_pairs_hook=once)
        except (ValueError, RecursionError): return None
        if not isinstance(told, dict) or not isinstance(told.get("origin"), str) or type(told.get("seq")) is not int or not 0 <= told["seq"] < 1 << 64: return None
        return "spliced" if told["origin"] != self.origin else "reordered" if told["seq"] != seq else None

    def not_covered(self, epoch, seq, leaf, raw, h):
        kind, before = self.stranger(seq, raw), self.epoch is None and epoch == 0
        if kind: self.find(kind, epoch, seq, seq, "event")
        elif self.next is not None and seq < self.next: return self.find("doubled", epoch, seq, seq, "event")
        elif before:
            if self.next is not None and self.next < seq: self.find("deleted", 0, self.next, seq - 1, "event")
            self.find("unsigned", 0, seq, seq, "event", not (self.pin and seq < self.pin["first"]))
            if leaf != h: self.find("projection", 0, seq, seq, "leaf_hash")
        else: self.uncovered = True; self.find("unsigned", epoch, seq, seq, "event")
        if before and self.next is not None: self.next = seq + 1

    def tells(self, seq, told):
        """What proven bytes tell: lost numbers, clock steps, silences."""
        body, time, n = told.get("body", {}), told.get("time_us"), self.epoch["n"]
        name = body.get("name") if body.get("kind") == "agent" else None
        if name == "log.epoch_begun" and self.epoch["hole"]: self.find("gap", n, *self.epoch["hole"], "log"); self.epoch["hole"] = None
        if self.last and self.last[0] + 1 == seq:
            delta = time - self.last[1]
            if delta < -1_000_000 or (delta > self.v.silence_us and not self.last[2]): self.flush(); self.jump = (seq, delta)
        if name == "clock.step":
            step = int(float(body.get("detail", {}).get("step_us", 0)))
            if self.jump and abs(self.jump[1] - step) <= self.v.silence_us: self.jump = None
            self.find("clock_step", n, seq, seq, "time")
        if self.jump and seq - self.jump[0] > 1_000: self.flush()
        self.last, self.time_us = (seq, time, name == "agent.stopped"), time

    def flush(self):
        if self.jump: self.find(*(("clock_step",) if self.jump[1] < 0 else ("silence",)), self.epoch["n"], self.jump[0] - (self.jump[1] >= 0), self.jump[0], "time")
        self.jump = None

    def end_batch(self):
        cur, self.current, runs = self.current, None, []
        if not cur: return
        for seq in cur["only"] if cur["only"] is not None else range(cur["first"], cur["last"] + 1):
            if seq in cur["seen"] or not cur["first"] <= seq <= cur["last"]: continue
            stone = next((policy for a, b, policy in self.stones if a <= seq <= b), None)
            if runs and runs[-1][1:] == [seq - 1, stone]: runs[-1][1] = seq
            else: runs.append([seq, seq, stone])
        for a, b, stone in runs: self.find("deleted" if stone is None else "retired", cur["epoch"], a, b, "event", stone is None, f"by {stone}" if stone is not None else "")

    def end_epoch(self, at_the_end):
        self.end_batch()
        e = self.epoch
        if not e: return
        if e["hole"]: self.find("deleted", e["n"], *e["hole"], "log")
        if self.v.witnesses and e["first"] + e["witnessed"] < e["next"]: self.find("unwitnessed", e["n"], e["first"] + e["witnessed"], e["next"] - 1, "log")
        beyond = [p for p in self.take_pending(e["n"], 1 << 64) if p["next"] > e["next"]]
        if not self.v.whole or not beyond: return
        own = [p for p in beyond if p["source"] in ("store", "idle")]
        known, told = max(p["next"] for p in beyond), max((p["next"] for p in own), default=None)
        waits = all(p["source"] == "idle" and p["next"] - e["next"] <= max(p["time"] - self.time_us if self.time_us is not None else 0, 0) // HEARTBEAT_US + 2 for p in own)
        if at_the_end and told == known and waits and all(p["source"] != "stored" for p in beyond): return
        ends_well = told is None and e["first"] + e["witnessed"] == e["next"] and not self.uncovered
        self.find("rolled_back" if ends_well else "truncated", e["n"], e["next"], known - 1, "log")

    def end(self, until_us):
        self.end_epoch(True)
        self.flush()
        if self.v.whole and self.last and not self.last[2] and until_us - max(self.last[1], self.alive or 0) > self.v.silence_us:
            self.find("silence", self.epoch["n"], self.last[0], self.last[0], "time")
        if not self.v.whole: return
        start, ahead = self.next or 0, max(self.pending, key=lambda p: (p["epoch"], p["size"]), default=None)
        if ahead: self.find("rolled_back", ahead["epoch"], start, max(ahead["next"] - 1, start), "log")
        elif self.pin and not self.epoch: self.find("deleted", self.pin["epoch"], start, max(start, self.pin["first"]), "log")


def once(pairs):
    if any([name for name, _ in pairs].count(one) > 1 for one in ("origin", "seq")): raise ValueError("a name twice")
    return dict(pairs)
def cosigned(note, key):
    try: return bool(signed(note, key))
    except Wrong: return False


class Verifier:
    def __init__(self, trust, scope, of=""):
        self.whys = []  # of each finding
        self.findings, self.whole, self.dense, self.scope, self.of = [], scope in ("all", "origin"), scope != "run", scope, of
        self.witnesses, self.silence_us = [key_of(k) for k in trust.get("witnesses", [])], trust.get("heartbeat_s", 60) * 3_000_000
        self.pins, self.log, self.seen = {}, None, set()
        for p in trust["logs"]:
            key = key_of(p["key"]); log = key[0].split("/")
            held = [(s, p[s]) for s in ("stored", "witnessed") if p.get(s)] + [("witnessed", note) for note in p.get("also", [])]
            seen = [(s, checkpoint(note[:note.index("\n\n") + 1])) for s, note in held]
            self.pins[log[2]] = dict(key=key, epoch=int(log[3]), first=p.get("first_seq", 0), seen=seen)

    def find(self, kind, origin, epoch, first, last, what, fault=True, why=""):
        new, old = [kind, origin, epoch, first, last, what, fault], self.findings[-1] if self.findings else None
        if old and what == "event" and [*old[:3], old[4] + 1, *old[5:]] == [*new[:3], first, *new[5:]] and (kind != "retired" or self.whys[-1] == why): old[4] = last
        else: self.findings.append(new); self.whys.append(why)

    def run(self, read, until_us):
        try:
            while line := read.readline():
                letter, text = line[:2], line[2:-1]
                if line[-1:] != b"\n": raise ValueError("it ends in the middle")
                if letter == b"E ":
                    epoch, seq, leaf, length = text.split(b" ")
                    numbers = [number(x.decode()) for x in (epoch, seq, length)]
                    raw = read.read(numbers[2] + 1)
                    if numbers[2] > 4 << 20 or len(leaf) != 64 or raw[-1:] != b"\n" or len(raw) != numbers[2] + 1: raise ValueError("an event")
                    if self.log is None: raise ValueError("an event before any log")
                    self.log.event(numbers[0], numbers[1], bytes.fromhex(leaf.decode()), raw[:-1]); continue
                item = json.loads(text)
                if letter == b"L ":
                    if self.log: self.log.end(until_us)
                    if item["origin"] in self.seen: self.find("doubled", item["origin"], 0, 0, 0, "log")
                    self.seen.add(item["origin"]); self.log = Log(item["origin"], self.pins.get(item["origin"]), self)
                else: {b"K ": self.log.key, b"T ": self.log.tombstone, b"C ": self.log.checkpoint, b"B ": self.log.batch}[letter](item)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, tarfile.TarError, Wrong) as why: self.find("unreadable", "", 0, 0, 0, "export", why=str(why))
        if self.log: self.log.end(until_us)
        for origin, pin in sorted(self.pins.items()):
            if origin not in self.seen and (self.scope == "all" or (self.scope == "origin" and origin == self.of)):
                last = max([c["next"] for _, c in pin["seen"]], default=0)
                self.find("deleted", origin, pin["epoch"], pin["first"], max(last - 1, pin["first"]), "log")
        return self.findings


class Members:
    """The log files of the archive, one after the other, as one."""
    def __init__(self, tar): self.tar, self.file = tar, None
    def next(self):
        member = self.tar.next()
        self.file = self.tar.extractfile(member) if member else None
        return self.file is not None
    def readline(self):
        while self.file or self.next():
            if line := self.file.readline(): return line
            self.file = None
        return b""
    def read(self, n): return self.file.read(n)


def verify(export, trust, asked=None):
    if not str(export).endswith(".zst"): file = open(export, "rb")
    else:
        try: from compression import zstd; file = zstd.open(export)  # Python 3.14
        except ImportError: file = subprocess.Popen(["zstd", "-dc", str(export)], stdout=subprocess.PIPE).stdout
    with file, tarfile.open(fileobj=file, mode="r|") as tar:
        manifest = json.load(tar.extractfile(tar.next()))
        verifier = Verifier(trust, manifest["scope"], manifest.get("of", ""))
        if asked not in (None, manifest["scope"]): verifier.find("unreadable", "", 0, 0, 0, "export")  # a part leaves much out
        verifier.run(Members(tar), manifest["made_us"])
    return verifier


if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if not a.startswith("--")]
    asked = next((a[8:] for a in sys.argv if a.startswith("--scope=")), "all")
    if len(names) != 2: sys.exit(print(__doc__, file=sys.stderr) or 2)
    verifier = verify(names[0], json.load(open(names[1])), asked)
    for (kind, origin, epoch, first, last, what, fault), why in zip(verifier.findings, verifier.whys):
        one = dict(kind=kind, fault=fault, origin=origin, epoch=epoch, first_seq=first, last_seq=last, what=what, detail=why)
        print(json.dumps(one) if "--json" in sys.argv else f"{kind:<12} {'' if fault else '(expected) '}{origin} epoch {epoch} {first}-{last} {what}{why and ': ' + ascii(why)}")
    faults = sum(f[6] for f in verifier.findings)
    if "--json" not in sys.argv: print(f"{faults} findings" if faults else "clean")
    sys.exit(1 if faults else 0)
