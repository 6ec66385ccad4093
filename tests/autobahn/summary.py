"""Prints a summary of the reports of an Autobahn run. Usage: summary.py REPORTS COMMIT"""

import collections
import datetime
import json
import pathlib
import sys

SECTIONS = {
    1: "Framing",
    2: "Pings and pongs",
    3: "Reserved bits",
    4: "Opcodes",
    5: "Fragmentation",
    6: "UTF-8",
    7: "Closing",
    9: "Limits and performance",
    10: "Fragmentation of the server",
    12: "Compression (different payloads)",
    13: "Compression (different parameters)",
}
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}

reports, commit = pathlib.Path(sys.argv[1]), sys.argv[2]
cases = []
for file in reports.glob("*_case_*.json"):
    report = json.loads(file.read_text())
    cases.append((report["id"], report["behavior"], report["behaviorClose"]))
by_section = collections.defaultdict(collections.Counter)
not_ok = []
for case, behavior, close in sorted(cases, key=lambda c: [int(n) for n in c[0].split(".")]):
    worst = behavior if behavior not in PASSED or close in PASSED else close
    by_section[int(case.split(".")[0])][worst] += 1
    if worst != "OK":
        not_ok.append(f"| {case} | {behavior} | {close} |")
required = {"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"}
undone = sum(s["UNIMPLEMENTED"] for s in by_section.values())
failed = sum(n for s in by_section.values() for what, n in s.items() if what not in required)

print("# Autobahn")
print()
print("- command: `tests/autobahn/run.sh`, which installs kosoku 0.1.0; all of its cases")
print(f"- commit: {commit}, {datetime.date.today()}")
print(f"- Cases: {len(cases)}. Not done: {undone}. Failed: {failed}")
print("- OK: as the RFC wants it. INFORMATIONAL: the RFC leaves it open. UNIMPLEMENTED, which is not")
print("  done: the case is about a way to compress that the server does not take, as RFC 7692 lets it.")
print("- kosoku is mended first for messages that came uncompressed in cases of compression: see run.sh.")
print()
print("| cases | about | OK | others |")
print("| --- | --- | --- | --- |")
for section, results in sorted(by_section.items()):
    others = ", ".join(f"{n} {what}" for what, n in sorted(results.items()) if what != "OK")
    print(f"| {section}.* | {SECTIONS.get(section, '')} | {results['OK']} | {others} |")
print()
unimplemented = [line for line in not_ok if "UNIMPLEMENTED" in line]
listed = [line for line in not_ok if line not in unimplemented]
if listed:
    print("| case | behaviour | close |")
    print("| --- | --- | --- |")
    print("\n".join(listed))
