"""The scripts of release leave alone what belongs to a guest that is alive: saved or migrated."""

import unittest
from pathlib import Path

from harness import mount_points, run
from scripts import ScriptCase, dircopy, directory, guest_xml

LOG = Path("/var/log/libvirt/qemu/web.log")
START = "2026-11-23 15:52:27.290+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.22\n"
INCOMING = f"{START}-S \\\n-incoming defer \\\n"
SCRIPTS = ("10-archive", "20-ramdisk", "30-post-rm-rf")


def end(reason):
    return (
        f"2026-11-23 15:52:28.228+0000: shutting down, reason={reason}\n"
        "2026-11-23T15:52:28.232543Z qemu-system-x86_64: terminating on signal 15\n"
    )


SAVED = START + end("saved")


class ShutoffReason(ScriptCase):
    def setUp(self):
        super().setUp()
        LOG.parent.mkdir(exist_ok=True)
        self.addCleanup(LOG.unlink, missing_ok=True)
        self.log, self.tmp = self.directory / "log", self.directory / "tmp"
        self.kept = self.directory / "archive"
        self.elements = (
            f"<archive>{dircopy(self.log, self.kept)}</archive>"
            f"<ramdisk>{directory(self.tmp, size='1M')}</ramdisk>"
            f"<post-rm-rf>{directory(self.log)}</post-rm-rf>"
        )

    def release(self, log="", reason="-", kind="kvm"):
        """Run the scripts of release for a guest with such a log; return what they gave."""
        run(["rm", "-rf", self.kept])
        self.write("log/data", "")
        self.tmp.mkdir(exist_ok=True)
        if str(self.tmp) not in mount_points():
            self.mount("-t", "tmpfs", "virt-hooks", self.tmp)
        LOG.write_text(log)
        xml = guest_xml(self.elements, kind=kind)
        return [self.call(xml, "release", "end", reason, name=name) for name in SCRIPTS]

    def assert_alive(self, results, alive):
        """The scripts have succeeded, and have done nothing if the guest is alive, else all."""
        for result in results:
            self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assert_untouched(alive)

    def assert_untouched(self, untouched=True):
        found = str(self.tmp) in mount_points(), self.log.exists(), not self.kept.exists()
        self.assertEqual(found, (untouched,) * 3)

    def test_a_guest_that_was_saved_or_migrated_is_alive_if_libvirt_says_so(self):
        for kind in ("lxc", "kvm"):
            for reason in ("saved", "migrated"):
                for log in ("", START + end("destroyed")):
                    with self.subTest(kind=kind, reason=reason, log=log):
                        self.assert_alive(self.release(log, reason, kind), True)

    def test_a_guest_that_ended_in_any_other_way_is_not(self):
        for reason in (
            "unknown", "shutdown", "destroyed", "crashed", "failed", "from snapshot", "daemon",
        ):  # fmt: skip
            with self.subTest(reason):
                self.assert_alive(self.release(reason=reason, kind="lxc"), False)
        for reason in ("shutdown", "destroyed", "crashed"):
            with self.subTest(reason):
                self.assert_alive(self.release(SAVED, reason), False)

    def test_where_libvirt_does_not_say_it_the_last_end_in_the_log_does(self):
        for log, alive in (
            (SAVED, True),
            (START + end("migrated"), True),
            (START + end("shutdown"), False),
            (START + end("crashed"), False),
            (SAVED + INCOMING + end("destroyed"), False),
            (START + end("destroyed") + INCOMING + end("saved"), True),
            (SAVED * 3000 + START + end("destroyed"), False),
            (START + end("destroyed") * 3000 + SAVED, True),
        ):
            with self.subTest(log=log[-300:]):
                self.assert_alive(self.release(log), alive)

    def test_a_guest_whose_restore_failed_is_alive(self):
        for reason in ("-", "failed"):
            for log, alive in (
                (SAVED + end("failed"), True),  # in prepare, say
                (SAVED + INCOMING + end("failed"), True),
                (SAVED + end("failed") + end("failed"), True),
                (START + end("destroyed") + INCOMING + end("failed"), True),  # of an older save
                (INCOMING + end("failed"), True),  # or from another host, where it lives on
                (START + end("shutdown") + end("failed"), False),
                (SAVED + INCOMING + end("shutdown") + end("failed"), False),
                (START + end("failed"), False),
            ):
                with self.subTest(reason=reason, log=log):
                    self.assert_alive(self.release(log, reason), alive)

    def test_where_neither_says_how_a_guest_of_qemu_ended_that_is_an_error(self):
        for log in ("", START, SAVED + INCOMING, "terminating on signal 15\n"):
            with self.subTest(log=log):
                reason = "unknown" if log == START else "-"  # as after a restart of the daemon
                for name, result in zip(SCRIPTS, self.release(log, reason)):
                    self.assertEqual((result.returncode, result.stdout), (1, ""))
                    self.assertEqual(result.stderr.count("\n"), 1)
                    for part in (name, "web", str(LOG)):
                        self.assertIn(part, result.stderr)
                self.assert_untouched()

    def test_a_container_is_never_saved_whatever_a_guest_of_that_name_has_logged(self):
        self.assert_alive(self.release(SAVED, kind="lxc"), False)


if __name__ == "__main__":
    unittest.main()
