"""Why a guest of QEMU ended, for the scripts of release, where libvirt does not say it."""

import unittest
from pathlib import Path

from harness import TestCase, domain, mount_points, run

LOG = Path("/var/log/libvirt/qemu/web.log")
START = "2026-11-23 15:52:27.290+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.22\n"
INCOMING = f"{START}-S \\\n-incoming defer \\\n"


def end(reason):
    return (
        f"2026-11-23 15:52:28.228+0000: shutting down, reason={reason}\n"
        "2026-11-23T15:52:28.232543Z qemu-system-x86_64: terminating on signal 15\n"
    )


SAVED = START + end("saved")


class ShutoffReason(TestCase):
    def setUp(self):
        super().setUp()
        LOG.parent.mkdir(exist_ok=True)
        self.addCleanup(LOG.unlink, missing_ok=True)
        self.log, self.tmp = self.directory / "log", self.directory / "tmp"
        self.archive = self.directory / "archive"
        self.elements = (
            f"<archive><dircopy><src>{self.log}</src><dst>{self.archive}</dst></dircopy></archive>"
            f'<ramdisk><dir size="1M">{self.tmp}</dir></ramdisk>'
            f"<post-rm-rf><dir>{self.log}</dir></post-rm-rf>"
        )

    def release(self, log, reason="-", kind="kvm", **options):
        """Run the scripts of release for a guest with such a log; return what they gave."""
        self.write("log/data", "")
        self.tmp.mkdir(exist_ok=True)
        if str(self.tmp) not in mount_points():
            run(["mount", "-t", "tmpfs", "virt-hooks", self.tmp])
        LOG.unlink(missing_ok=True)
        if log is not None:
            LOG.write_text(log)
        xml = domain(self.elements).replace("'lxc'", f"'{kind}'")
        arguments = ("web", "release", "end", reason)
        names = ("10-archive", "20-ramdisk", "30-post-rm-rf")
        return [self.run_script(name, xml, *arguments, **options) for name in names]

    def is_kept(self):
        """Whether everything is there still, or nothing but the archive, which is removed."""
        found = (
            str(self.tmp) in mount_points(), self.log.exists(), not self.archive.exists()
        )  # fmt: skip
        self.assertEqual(len(set(found)), 1, found)
        run(["rm", "-rf", self.archive])
        return found[0]

    def test_a_guest_goes_on_if_the_log_says_that_it_was_saved_or_migrated(self):
        for log, reason, kept in (
            (SAVED, "-", True),
            (START + end("migrated"), "-", True),
            (START + end("shutdown"), "-", False),
            (START + end("crashed"), "-", False),
            (START + end("from snapshot"), "-", False),
            (SAVED + INCOMING + end("destroyed"), "-", False),
            (START + end("destroyed") + INCOMING + end("saved"), "-", True),
            (SAVED * 3000 + START + end("destroyed"), "-", False),
            (START + end("destroyed") * 3000 + SAVED, "-", True),
        ):
            with self.subTest(log=log[-300:]):
                for result in self.release(log, reason):
                    self.assert_succeeds(result)
                self.assertEqual(self.is_kept(), kept)

    def test_a_start_that_failed_changes_nothing(self):
        for reason in ("-", "failed"):
            for log, kept in (
                (SAVED + end("failed"), True),  # in prepare, say
                (SAVED + INCOMING + end("failed"), True),
                (SAVED + end("failed") + end("failed"), True),
                (INCOMING + end("failed"), True),  # from another host, where it lives on
                (end("failed"), False),
                (START + end("failed"), False),
                (START + end("shutdown") + end("failed"), False),
                (SAVED + INCOMING + end("shutdown") + end("failed"), False),
            ):
                with self.subTest(reason=reason, log=log):
                    for result in self.release(log, reason):
                        self.assert_succeeds(result)
                    self.assertEqual(self.is_kept(), kept)

    def test_what_libvirt_says_counts_before_what_the_log_says(self):
        for log, reason, kept in (
            (SAVED, "destroyed", False),
            (SAVED, "shutdown", False),
            (START + end("destroyed"), "saved", True),
            (START + end("destroyed"), "migrated", True),
        ):
            with self.subTest(log=log, reason=reason):
                for result in self.release(log, reason):
                    self.assert_succeeds(result)
                self.assertEqual(self.is_kept(), kept)

    def test_if_the_log_does_not_say_it_that_is_an_error_and_nothing_is_done(self):
        for log in (START, SAVED + INCOMING, "", "terminating on signal 15\n"):
            with self.subTest(log=log):
                for result in self.release(log):
                    reason = f"how it ended neither libvirt says nor {LOG}: was it saved?"
                    self.assert_one_line_error(result, f": web: {reason}")
                self.assertTrue(self.is_kept())

    def test_a_dry_run_for_a_guest_that_runs_says_what_its_end_would_bring(self):
        for result in self.release(START, dry_run=True):
            self.assert_succeeds(result)
            self.assertRegex(result.stdout, "^would ")
        self.assertTrue(self.is_kept())

    def test_a_guest_that_never_ran_here_has_no_log(self):
        for result in self.release(None):
            self.assert_succeeds(result)
        self.assertFalse(self.is_kept())

    def test_a_container_is_never_saved_whatever_a_guest_of_that_name_has_logged(self):
        for result in self.release(SAVED, kind="lxc"):
            self.assert_succeeds(result)
        self.assertFalse(self.is_kept())


if __name__ == "__main__":
    unittest.main()
