"""Fifty real containers, eight at a time, with every element: nothing of them is lost or left."""

import sys
import threading
import time
import unittest
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import Syslog, TestCase, mount_points, network_state, run, snapshot
from libvirt import HOOKS, Guest, LostGuest, root_directory, start_libvirtd_with_hooks
from test_libvirt import LIFE

GUESTS, AT_ONCE = 50, 8
NETWORK = """
    <routing-table id="{table}" name="uplink{table}">
      <route>10.99.0.0/24 via 10.88.0.2 dev uplink</route><rule>from 10.77.0.{number}</rule>
    </routing-table>
    <network-policy>
      <nft>
        chain from-guest {{
          type filter hook forward priority filter; policy accept;
          ip saddr 10.77.0.{number} tcp dport 25 reject
        }}
      </nft>
    </network-policy>
"""


class Guests(TestCase):
    def setUp(self):
        super().setUp()
        start_libvirtd_with_hooks(self.addCleanup)
        for command in (
            "link add uplink type bridge",
            "link set uplink addrgenmode none",
            "addr add 10.88.0.1/24 dev uplink",
            "link set uplink up",
        ):
            self.assert_succeeds(run(["ip", *command.split()]))
        self.addCleanup(run, ["ip", "link", "delete", "uplink"])
        self.tried, self.lock = Counter(), threading.Lock()

    def state_of_host(self):
        """All that guests' scripts may leave on a host, except archives."""
        state = {**network_state(), "mounts": mount_points()}
        kept = Path("/run/virt-hooks")
        if kept.exists():
            state |= {k: v for k, v in snapshot(kept).items() if v[3] is not None}
        return {key: value for key, value in state.items() if not key.endswith("lock")}

    def processes(self):
        """The processes that have to do with hooks or with containers."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                text = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended
            if f"{HOOKS}/" in text or "libvirt_lxc" in text or "--guest" in text:
                found.append(text)
        return found

    def live(self, number):
        """Let a guest live, until libvirtd has not lost it; look at what it has left."""
        name, directory = f"guest{number}", self.directory / f"guest{number}"
        root = root_directory(directory / "root")
        (root / ".oldroot").mkdir()  # which libvirt would leave
        (directory / "golden").mkdir()
        (directory / "golden/hello").write_text(f"hello, {name}\n")
        elements = LIFE + NETWORK.format(number=number + 1, table=101 + number % 3)
        elements = elements.replace("{root}", str(root)).replace("{directory}", str(directory))
        command = f"cat /tmp/hello > /log/hello; echo {name} > /cache/pages/x"
        before = snapshot(root)
        for _ in range(5):
            guest = Guest(name, root, command, elements)
            try:
                guest.live()
                break
            except LostGuest:
                with self.lock:
                    self.tried["lost by libvirtd, and started again"] += 1
            finally:
                guest.remove()
                (root / "end").unlink(missing_ok=True)
        else:
            raise LostGuest
        self.assertEqual(snapshot(root), before)
        archives = [*(directory / "archive").iterdir()]
        self.assertIn(f"hello, {name}\n", [(path / "hello").read_text() for path in archives])
        for path in archives:  # and nothing half done beside them
            self.assertRegex(path.name, r"^\d{4}-\d\d-\d\d(\.\d+)?$")
        with self.lock:
            self.tried["lived"] += 1

    def test_fifty_guests_eight_at_a_time_leave_their_archives_and_nothing_else(self):
        before = self.state_of_host()
        with Syslog() as syslog, ThreadPoolExecutor(AT_ONCE) as pool:
            for number, future in enumerate([pool.submit(self.live, n) for n in range(GUESTS)]):
                with self.subTest(guest=number):
                    future.result()
        self.assertEqual(self.tried["lived"], GUESTS)
        self.assertEqual(self.state_of_host(), before)
        until = time.monotonic() + 60
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.1)  # a controller ends a little after its guest
        self.assertEqual(left, [])
        if not self.tried["lost by libvirtd, and started again"]:
            self.assertEqual([line for line in syslog.lines if "exit status" in line], [])
        self.assertTrue(any("guest49 release end" in line for line in syslog.lines))
        print(f"containers: {dict(self.tried)}", file=sys.stderr)


if __name__ == "__main__":
    unittest.main()
