# Scripts that "virt-hooks new" makes. The lines below "#: two" are for scripts of two phases, those
# below "#: filter" for filters, those below "#: all" for all. Words in capitals are replaced.
#: all
# element: NAME
"""FILE: does something for a guest (WHEN).

    <NAME>some text</NAME>

Argument 1 is the guest's name, 2 the operation; the guest's XML is on stdin. To fail, print the
reason on stderr and exit with a status other than 0KILLS.
VIRT_HOOKS_DRY_RUN=1: only say what would be done.
"""

import os
import sys
from xml.etree import ElementTree

guest, operation = sys.argv[1:3]
dry_run = os.environ.get("VIRT_HOOKS_DRY_RUN", "0") not in ("", "0")
root = ElementTree.parse(sys.stdin.buffer).getroot()
#: filter
sys.stdout = sys.stderr  # what is printed on stdout replaces the guest's XML
#: two
state = f"/run/virt-hooks/NAME-{root.findtext('.//uuid')}"  # what is to be undone

if operation == "LAST":
    if dry_run:
        print("would undo it")
    elif os.path.exists(state):  # not without FIRST, and not twice
        with open(state) as file:
            print("undo it here:", file.read().strip())
        os.unlink(state)
    sys.exit()
#: all

elements = list(root.iter("{urn:virt-hooks:1}NAME"))
if any(e.attrib or len(e) or not (e.text or "").strip() for e in elements):
    wrong = "<NAME> needs a text, and takes no attributes or elements"
    sys.exit(f"{os.path.basename(sys.argv[0])}: {guest}: {wrong}")
for text in [element.text.strip() for element in elements]:
    if dry_run:
        print("would do it:", text)
    else:
        #: two
        os.makedirs("/run/virt-hooks", mode=0o700, exist_ok=True)
        with open(state, "a") as file:  # first: what is half done is undone, too
            print(text, file=file)
        #: all
        print("do it here:", text)
